"""Verdicts: what records say of a claim.

A printed score is decided by a test of equivalence, an ordering by the difference paired over
seeds (`report.statistics`); both between comparable scores only (`report.comparability`). Every
number is a mean over all seeds: no claim of this paper is a minimum over runs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrepro import paper
from cmrepro.paper import AbsoluteClaim, Claim, Ordering, Setting, claims, stand_ins
from cmrepro.records import NOISE, RunRecord
from cmrepro.report import comparability, statistics
from cmrepro.report.comparability import NAMES, Agreement, facts, kind_of_seeds, seed_means
from cmrepro.report.statistics import Summary, half_width, summarise
from cmrepro.report.tables import LABELS
from cmrepro.schema import Struct
from cmrepro.settings import Metric

HOLDS = {True: "holds at demo scale", False: "reproduced"}
DOES_NOT_HOLD = {True: "does not hold at demo scale", False: "not reproduced"}
UNTRAINED_SHARE = 0.1  # of noise's FD: a model that is no further from it did not train


class Side(Struct, frozen=True):
    """Trainings of one recipe with one sampler under one protocol."""

    first: RunRecord  # the record of the first seed; the others agree but in seeds and scores
    records: dict[tuple[int, int], RunRecord]  # by seeds of training and sampling that count
    remark: str  # note on those that do not, "" where all do


def sides(records: Sequence[RunRecord], nfe: int, metric: Metric) -> list[Side]:
    """Sides with that number of evaluations and that score, in the order of models' names.

    Scores of the seeds on which a checkpoint or its second time was chosen flatter the model and
    do not count.
    """
    found = []
    for members in comparability.group(r for r in records if r.nfe == nfe and metric in r.scores):
        by_seed = {(r.training_seed, r.seed): r for r in members if r.seed is not None}
        checkpoint, chosen_on = members[0].checkpoint, set[int]()
        if checkpoint:
            times = checkpoint.two_step_selection if nfe > 1 else None
            chosen_on = {*checkpoint.selection.seeds, *(times.seeds if times else ())}
        left_out = ", ".join(map(str, sorted(chosen_on & {seed for _, seed in by_seed})))
        remark = f"without seed {left_out}, on which checkpoint or time was chosen"
        counted = {seeds: r for seeds, r in by_seed.items() if seeds[1] not in chosen_on}
        if by_seed:
            found.append(Side(members[0], counted, remark if left_out else ""))
    return found


def setting_sides(records: Sequence[RunRecord], setting: Setting, demo: bool) -> list[Side]:
    """Sides of the model of a setting, with its changes and no others, at that scale."""
    wanted = comparability.ablated_fields(setting.recipe, setting.changes, demo)

    def fits(record: RunRecord) -> bool:
        fields = comparability.ablated(record) or {}  # none of a model from elsewhere
        as_wanted = fields == wanted if wanted else {*setting.changes} <= {*fields.items()}
        named = facts(record)["stands_for"] == setting.recipe
        return as_wanted and named and comparability.is_demo(record) == demo

    return [s for s in sides(records, setting.nfe, setting.metric) if fits(s.first)]


class Verdict(Struct, frozen=True):
    """Verdict on one claim."""

    # "not measured", "not comparable", "inconclusive", "reproduced", "not reproduced", "holds at
    # demo scale" or "does not hold at demo scale"
    answer: str
    reason: str  # one short sentence
    # Mean score over seeds of an absolute claim; of an ordering the difference, positive where the
    # side that it calls better is better
    estimate: Summary | None = None
    notes: tuple[str, ...] = ()  # limits of the verdict, a short sentence each
    failure: str = ""  # "the worse side did not train", where that is why it is inconclusive
    stand_in: str = ""  # what decided in the place of what the claim names

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.answer, self.failure, self.stand_in]))

    def statement(self, claim: Claim) -> str:
        """The claim in words as it was decided: from a figure alone, or with a stand-in."""
        limits = filter(None, ["figure only" * (claim.basis == "figure"), self.stand_in])
        return claim.statement + "".join(f" ({limit})" for limit in limits)


def verdicts(records: Sequence[RunRecord]) -> dict[str, Verdict]:
    """The verdict on each claim by its id, in the order of the claims."""
    decide: dict[str, Any] = {"absolute": absolute_verdict, "ordering": ordering_verdict}
    return {claim.id: decide[claim.kind](claim, records) for claim in claims()}


def verdict_needs(protocol: str, num_images: int, seeds: int) -> str:
    """Sentence on what verdicts need and what a run of these settings will have, for its start."""
    scores = [c for c in claims() if isinstance(c, AbsoluteClaim)]
    needed = next((c.num_images for c in scores if c.setting.protocol == protocol), None)
    text = "verdicts on orderings at demo scale need at least 2 seeds"
    if needed:
        text = f"verdicts need {needed:,} images of each seed and at least 2 seeds"
    outcome = "so that every verdict will be inconclusive" if seeds < 2 else "which is enough"
    if needed not in (None, num_images):
        outcome = "so that no score will be comparable with the paper's"
    run = f"this run has {num_images:,} images of {seeds} seed{'s' * (seeds != 1)}"
    return f"{text}; {run}, {outcome}"


def absolute_verdict(claim: AbsoluteClaim, records: Sequence[RunRecord]) -> Verdict:
    """Verdict on a printed score.

    Reproduced: two one-sided t tests at 5 % place the mean over seeds within the claim's margin,
    that is, the whole 90 % interval lies inside. Not reproduced: the whole 95 % interval lies
    outside. Inconclusive also where several models are comparable and their answers differ.
    """
    setting = claim.setting
    compared = [
        (side, comparability.against_claim(claim, side.first))
        for side in sides(records, setting.nfe, setting.metric)
        if facts(side.first)["stands_for"] == setting.recipe
    ]
    if not compared:
        return Verdict("not measured", f"no record of {setting}")
    comparable = [pair for pair in compared if not pair[1].different]
    if not comparable:
        side, agreement = min(
            compared, key=lambda x: (comparability.is_ablation(x[0].first), len(x[1].different))
        )
        return _not_comparable(agreement, f"{side.first.model}: ")
    found = [(side, _decide_score(claim, side, found.notes)) for side, found in comparable]
    if len({verdict.answer for _, verdict in found}) == 1:
        return found[0][1]
    each = tuple(f"{side.first.model} {v.answer}: {v.reason}" for side, v in found)
    return Verdict("inconclusive", "the models disagree", notes=each)


def _not_comparable(agreement: Agreement, subject: str) -> Verdict:
    """Verdict that counts what differs in its reason and names each difference in its notes."""
    differences = [*agreement.different.values()]
    fields = ", ".join(field.split()[0] for field in agreement.different)
    reason = differences[0] if len(differences) == 1 else f"differs in {fields}"
    notes = (*(differences if len(differences) > 1 else ()), *agreement.notes)
    return Verdict("not comparable", f"{subject}{reason}", notes=notes)


def _decide_score(claim: AbsoluteClaim, side: Side, notes: Sequence[str]) -> Verdict:
    """Verdict on a printed score by comparable records."""
    members = [*side.records.values()]
    values = seed_means(members, claim.setting.metric)
    notes = (*filter(None, [side.remark]), *notes)
    against = f"{claim.printed} with margin {claim.margin:.2g}"
    if not values:
        return Verdict("not comparable", "no seed is left", notes=notes)
    mean = summarise(values)
    if mean.n == 1:
        reason = f"{mean} of 1 seed against {against}; a spread needs at least 2 seeds"
        return Verdict("inconclusive", reason, mean, notes)
    distance, sd = mean.mean - claim.value, float(np.std(values, ddof=1))
    outside = statistics.is_outside(distance, claim.margin, sd, mean.n)
    inside = statistics.is_equivalent(distance, claim.margin, sd, mean.n)
    percent = 95 if outside else 90  # of the interval that decides
    half = half_width(sd, mean.n, percent / 100)
    interval = f"{percent} % interval {mean.mean - half:.4g} to {mean.mean + half:.4g}"
    seeds = f"{mean.n} {kind_of_seeds(members)} seeds"
    reason = f"{mean.mean:.4g} over {seeds}, {interval}, against {against}"
    answer = "not reproduced" if outside else "reproduced" if inside else "inconclusive"
    return Verdict(answer, reason, mean, notes)


class _Pair(NamedTuple):
    """The better side and one worse side."""

    worse: Setting
    seeds: str  # what the n seeds are of: "training" where both sides have several, or "sampling"
    scores: NDArray[np.float64]  # (2, n) of the better and of the worse side, by common seed
    gains: NDArray[np.float64]  # (n,) by which the better side is better
    agreement: Agreement
    failure: str  # the side that did not train and its FD beside noise's, "" where both did


def ordering_verdict(claim: Ordering, records: Sequence[RunRecord]) -> Verdict:
    """Verdict on an ordering: by models of the paper's size, or else by the demo's.

    It holds when, for every worse side, the whole 95 % interval of the mean difference lies on the
    claimed side of zero. It does not hold when for one of the K worse sides the interval lies
    wholly on the other; there the interval is that of 1 - 5 % / K, so that a claim of which no
    part is wrong is denied in at most 5 %. A side that did not train decides nothing.
    """
    settings = (claim.better, *claim.worse)
    missing: list[Sequence[Setting]] = []
    found: list[Verdict] = []
    for demo in (True, False):
        candidates = [setting_sides(records, x, demo) for x in settings]
        missing.append([x for x, of in zip(settings, candidates, strict=True) if not of])
        if not missing[-1]:
            found.insert(0, _by_candidates(claim, candidates, demo, records))
    if not found:
        fewest = min(missing, key=len)
        return Verdict("not measured", f"no record of {'; '.join(map(str, fewest))}")
    return min(found, key=lambda verdict: verdict.answer == "not comparable")


def _by_candidates(
    claim: Ordering, candidates: list[list[Side]], demo: bool, records: Sequence[RunRecord]
) -> Verdict:
    """Verdict where every setting has records; the choice among them never depends on scores.

    The better side is the first for which every setting has a worse one that agrees with it: those
    of several trainings on both sides first, then of more images, of more seeds and of models
    named like their recipes.
    """

    def pair_with(better: Side, worse: Setting, others: list[Side]) -> _Pair:
        pairs = [_pair((claim.better, worse), (better, side), records) for side in others]
        return min(pairs, key=rank)

    def rank(pair: _Pair) -> tuple[bool, bool]:
        return bool(pair.agreement.different), pair.seeds != "training"

    better_sides, *worse_sides = [sorted(x, key=_preference, reverse=True) for x in candidates]
    settings = [*zip(claim.worse, worse_sides, strict=True)]
    tried = [[pair_with(better, *setting) for setting in settings] for better in better_sides]
    pairs = min(tried, key=lambda pairs: max(map(rank, pairs)))
    changes = [value for side in (claim.better, *claim.worse) for _, value in side.changes]
    replaced = [stand_ins()[v] for v in dict.fromkeys(changes) if demo and v in stand_ins()]
    stand_in = ", ".join(f"{x.by} for {x.name}" for x in replaced)
    for pair in pairs:
        if pair.agreement.different:
            return _not_comparable(pair.agreement, "")
        if len(pair.gains) < 2:
            reason = f"seeds on both sides: {len(pair.gains)}; at least 2 are needed"
            return Verdict("inconclusive", reason, notes=(*pair.agreement.notes,))
    verdict = _decide(claim, pairs, demo)
    features = "".join(f"{x.by} features stand in for {x.name}: " for x in replaced)
    return verdict.replace(reason=features + verdict.reason, stand_in=stand_in)


def _preference(side: Side) -> tuple[int, int, bool]:
    checkpoint = side.first.checkpoint
    recipe = checkpoint.recipe if checkpoint else None
    named = recipe is not None and recipe.name == side.first.model
    return side.first.num_images, len({seed for _, seed in side.records}), named


def _pair(
    settings: tuple[Setting, Setting], pair: tuple[Side, Side], records: Sequence[RunRecord]
) -> _Pair:
    """Two sides with their differences by common seed of training, or else of sampling."""
    metric, members = settings[0].metric, _common(*pair)
    a, b = (of[0] if of else side.first for of, side in zip(members, pair, strict=True))
    found, notes = comparability.pair_agreement(a, b, NAMES), []
    for setting, record, name in zip(settings, (a, b), NAMES, strict=True):
        found |= comparability.against_setting(setting, record, name)
    noise = [{record.hashes.noise for record in of} for of in zip(*members, strict=True)]
    if any(None in of_seed or len(of_seed) > 1 for of_seed in noise):
        notes.append(
            "paired by seed; the two sides draw different noise, or different amounts of it"
        )
    notes += [f"{s.remark} {name}" for s, name in zip(pair, NAMES, strict=True) if s.remark]
    scores, gains = _gains(metric, members)
    shared = [m for m in LABELS if m in a.scores.keys() & b.scores.keys()]
    opposite = [m for m in shared if (_gains(m, members)[1] * gains.sum() < 0).all()]
    if len(gains) > 1 and opposite:
        notes.append(f"the other way with every seed: {', '.join(LABELS[m] for m in opposite)}")
    found |= Agreement({}, {}, tuple(notes))
    failures = map(_failure, ("better", "worse"), members, (records, records))
    failure = next(filter(None, failures), "")
    return _Pair(settings[1], kind_of_seeds(members[0]), scores, gains, found, failure)


def _common(a: Side, b: Side) -> tuple[list[RunRecord], list[RunRecord]]:
    """Records of both sides with the same seeds of training and sampling, in their order.

    Where no training seed is common, those of each side's first training, by sampling seed.
    """
    is_common = {t for t, _ in a.records} & {t for t, _ in b.records}

    def by_seeds(side: Side) -> dict[tuple[int, int], RunRecord]:
        if is_common or not side.records:
            return side.records
        first, _ = min(side.records)
        return {(0, seed): r for (training, seed), r in side.records.items() if training == first}

    better, worse = by_seeds(a), by_seeds(b)
    common = sorted(better.keys() & worse.keys())
    return [better[seeds] for seeds in common], [worse[seeds] for seeds in common]


def _failure(role: str, members: list[RunRecord], records: Sequence[RunRecord]) -> str:
    """Remark on a side that is hardly better than noise scored like it; "" for others."""
    noise = [r for m in members[:1] for r in comparability.anchors(m, records) if r.model == NOISE]
    limits = [r.scores["fid"] for r in noise if "fid" in r.scores]
    fids = [r.scores["fid"] for r in members if "fid" in r.scores]
    if not limits or not fids or np.mean(fids) <= (1 - UNTRAINED_SHARE) * limits[0]:
        return ""
    text = f"{LABELS['fid']} {np.mean(fids):.4g} where noise has {limits[0]:.4g}"
    return f"the {role} side did not train: {text}"


def _gains(
    metric: Metric, members: Sequence[list[RunRecord]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(2, n) scores by side and seed, and (n,) gains of the first side over the second."""
    scores = np.array([seed_means(of_side, metric) for of_side in members])
    return scores, (scores[0] - scores[1]) * (-1 if metric in paper.LOWER_IS_BETTER else 1)


def _decide(claim: Ordering, pairs: list[_Pair], demo: bool) -> Verdict:
    """Verdict where all pairs are comparable and have two seeds or more."""
    confidence = 1 - statistics.ALPHA / len(pairs)
    halves = [half_width(np.std(p.gains, ddof=1), len(p.gains), confidence) for p in pairs]
    failed = [pair for pair in pairs if pair.failure]
    trained = [(p, half) for p, half in zip(pairs, halves, strict=True) if not p.failure]
    denied = [pair for pair, half in trained if pair.gains.mean() + half < 0]
    summaries = [(pair, summarise(list(pair.gains))) for pair in denied[:1] or failed[:1] or pairs]
    closest, gain = min(summaries, key=lambda found: found[1].mean - found[1].half_width)
    better, worse = closest.scores.mean(axis=1)
    size = Summary(abs(gain.mean), gain.half_width, gain.n)
    text = (
        f"{LABELS[claim.better.metric]} {better:.4g} against {worse:.4g}"
        f"{f' of {closest.worse}' if len(claim.worse) > 1 else ''}, "
        f"{'better' if gain.mean >= 0 else 'worse'} by {size} "
        f"(95 % interval, {gain.n} {closest.seeds} seeds)"
    )
    notes = tuple(dict.fromkeys(note for pair in pairs for note in pair.agreement.notes))
    if denied:
        return Verdict(DOES_NOT_HOLD[demo], text, gain, notes)
    if failed:
        failure = closest.failure.partition(":")[0]
        return Verdict("inconclusive", closest.failure, gain, (text, *notes), failure)
    answer = HOLDS[demo] if gain.mean > gain.half_width else "inconclusive"
    return Verdict(answer, text, gain, notes)
