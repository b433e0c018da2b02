"""Verdicts: what records say of a claim.

A printed score is decided by a test of equivalence, an ordering by the difference paired over
seeds (`report.statistics`); both between comparable scores only (`report.comparability`). Every
number is a mean over all seeds: no claim of this paper is a minimum over runs.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrepro.paper import AbsoluteClaim, Ordering, Setting, claims, metrics
from cmrepro.records import RunRecord
from cmrepro.report import comparability, statistics
from cmrepro.report.comparability import NAMES, SCORED, Side, facts, sampling_agreement, scoring
from cmrepro.report.statistics import Summary, Verdict, half_width, inconclusive, summarise
from cmrepro.report.tables import LABELS
from cmrepro.settings import Metric

HOLDS = {True: "holds at demo scale", False: "reproduced"}
DOES_NOT_HOLD = {True: "does not hold at demo scale", False: "not reproduced"}


def verdicts(records: Sequence[RunRecord]) -> dict[str, Verdict]:
    """The verdict on each claim by its id, in the order of the claims."""
    decide: dict[str, Any] = {"absolute": absolute_verdict, "ordering": ordering_verdict}
    return {claim.id: decide[claim.kind](claim, records) for claim in claims()}


def absolute_verdict(claim: AbsoluteClaim, records: Sequence[RunRecord]) -> Verdict:
    """Verdict on a printed score.

    Reproduced: two one-sided t tests at 5 % place the mean over seeds within the claim's margin,
    that is, the whole 90 % interval lies inside. Not reproduced: the whole 95 % interval lies
    outside. Inconclusive also where several models are comparable and their answers differ.
    """
    setting = claim.setting
    compared = [
        (side, comparability.against_claim(claim, side.first))
        for side in comparability.sides(records, setting.nfe, setting.metric)
        if facts(side.first)["stands_for"] == setting.recipe
    ]
    if not compared:
        return Verdict("not measured", f"no record of {setting}")
    comparable = [pair for pair in compared if not pair[1].different]
    if not comparable:
        side, agreement = min(
            compared, key=lambda x: (comparability.is_ablation(x[0].first), len(x[1].different))
        )
        return Verdict("not comparable", f"{side.first.model}: {agreement}")
    found = [(side, _decide_score(claim, side, str(found))) for side, found in comparable]
    if len({verdict.answer for _, verdict in found}) == 1:
        return found[0][1]
    each = "; ".join(f"{side.first.model} {v.answer} ({v.reason})" for side, v in found)
    return Verdict("inconclusive", f"the models disagree: {each}")


def _decide_score(claim: AbsoluteClaim, side: Side, unknown: str) -> Verdict:
    """Verdict on a printed score by comparable records."""
    values = [record.scores[claim.setting.metric] for record in side.records.values()]
    notes = "".join(f"; {note}" for note in (side.remark, unknown) if note)
    against = f"{claim.printed} with margin {claim.margin:.2g}"
    if not values:
        return Verdict("not comparable", f"no seed is left{notes}")
    mean = summarise(values)
    if mean.n == 1:
        reason = f"{mean} of 1 seed against {against}; a spread needs at least 2 seeds{notes}"
        return Verdict("inconclusive", reason, mean)
    distance, sd = mean.mean - claim.value, float(np.std(values, ddof=1))
    reasons = {}
    for percent in (90, 95):
        half = half_width(sd, mean.n, percent / 100)
        interval = f"{percent} % interval {mean.mean - half:.4g} to {mean.mean + half:.4g}"
        reasons[percent] = f"{mean.mean:.4g} over {mean.n} seeds, {interval}, against {against}"
    if statistics.is_equivalent(distance, claim.margin, sd, mean.n):
        return Verdict("reproduced", reasons[90] + notes, mean)
    if statistics.is_outside(distance, claim.margin, sd, mean.n):
        return Verdict("not reproduced", reasons[95] + notes, mean)
    return inconclusive(reasons[90], mean, distance, claim.margin, sd, notes)


class _Pair(NamedTuple):
    """The better side and one worse side."""

    worse: Setting
    scores: NDArray[np.float64]  # (2, n) of the better and of the worse side, by common seed
    gains: NDArray[np.float64]  # (n,) by which the better side is better
    different: list[str]  # fields in which the two are not comparable, in words
    notes: list[str]


def ordering_verdict(claim: Ordering, records: Sequence[RunRecord]) -> Verdict:
    """Verdict on an ordering: by models of the paper's size, or else by the demo's.

    It holds when, for every worse side, the whole 95 % interval of the mean difference lies on the
    claimed side of zero. It does not hold when for one of the K worse sides the interval lies
    wholly on the other; there the interval is that of 1 - 5 % / K, so that a claim of which no
    part is wrong is denied in at most 5 %.
    """
    settings = (claim.better, *claim.worse)
    missing: list[Sequence[Setting]] = []
    found: list[Verdict] = []
    for demo in (True, False):
        candidates = [comparability.setting_sides(records, x, demo) for x in settings]
        missing.append([x for x, of in zip(settings, candidates, strict=True) if not of])
        if not missing[-1]:
            found.insert(0, _by_candidates(claim, candidates, demo))
    if not found:
        fewest = min(missing, key=len)
        return Verdict("not measured", f"no record of {'; '.join(map(str, fewest))}")
    return min(found, key=lambda verdict: verdict.answer == "not comparable")


def _by_candidates(claim: Ordering, candidates: list[list[Side]], demo: bool) -> Verdict:
    """Verdict where every setting has records; the choice among them never depends on scores."""
    agreements = [[(s, sampling_agreement(s.first)) for s in of] for of in candidates]
    comparable = [[side for side, found in of if not found.different] for of in agreements]
    if [] in comparable:
        side, agreement = agreements[comparable.index([])][0]
        return Verdict("not comparable", f"{side.first.model}: {agreement}")
    combinations = [c for c in product(*comparable) if len({scoring(s.first) for s in c}) == 1]
    if not combinations:
        first, *rest = [facts(of[0].first) for of in comparable]
        found = [str(comparability.compare_facts(first, x, SCORED, NAMES)) for x in rest]
        reason = "; ".join(filter(None, found)) or "scored against different reference statistics"
        return Verdict("not comparable", reason)

    def pairs_of(combination: Sequence[Side]) -> list[_Pair]:
        better, *others = combination
        worse_sides = zip(claim.worse, others, strict=True)
        return [_pair((claim.better, worse), (better, side), demo) for worse, side in worse_sides]

    combinations.sort(key=_preference, reverse=True)
    tried = map(pairs_of, combinations)
    alike = (pairs for pairs in tried if not any(pair.different for pair in pairs))
    pairs = next(alike, None) or pairs_of(combinations[0])
    for pair in pairs:
        if pair.different:
            return Verdict("not comparable", "; ".join(pair.different))
        if len(pair.gains) < 2:
            seeds = f"seeds on both sides: {len(pair.gains)}; at least 2 are needed"
            return Verdict("inconclusive", "; ".join([seeds, *pair.notes]))
    return _decide(claim, pairs, demo)


def _preference(sides: Sequence[Side]) -> tuple[int, int, int]:
    """Greater for more images, then more seeds, then more models named like their recipes."""
    firsts = [side.first for side in sides]
    named = [r for r in firsts if (c := r.checkpoint) and c.recipe and c.recipe.name == r.model]
    return firsts[0].num_images, sum(len(side.records) for side in sides), len(named)


def _pair(settings: tuple[Setting, Setting], pair: tuple[Side, Side], demo: bool) -> _Pair:
    """Two sides with their differences by common seed."""
    (a, b), metric = pair, settings[0].metric
    different, notes = comparability.disagreement(settings, (a.first, b.first), demo)
    common = sorted(a.records.keys() & b.records.keys())
    if (a.first.nfe, a.first.num_sampled) != (b.first.nfe, b.first.num_sampled):
        notes.append("paired by seed alone, as the two sides draw different amounts of noise")
    else:
        noise = {s: {side.records[s].hashes.noise for side in pair} for s in common}
        if other := [s for s in common if None not in noise[s] and len(noise[s]) > 1]:
            common = [s for s in common if s not in other]
            notes.append(f"without seed {', '.join(map(str, other))}, whose noise differs")
            different += [] if common else ["the noise of every seed differs"]
        if any(None in noise[s] for s in common):
            notes.append("paired by seed alone, as a side does not record its noise")
    notes += [f"{s.remark} {name}" for s, name in zip(pair, NAMES, strict=True) if s.remark]
    if not common and not different:
        notes.append("no seed in common")
    scores, gains = _gains(metric, pair, common)
    shared = [m for m in LABELS if m in a.first.scores.keys() & b.first.scores.keys()]
    opposite = [m for m in shared if (_gains(m, pair, common)[1] * gains.sum() < 0).all()]
    if len(common) > 1 and opposite:
        notes.append(f"the other way with every seed: {', '.join(LABELS[m] for m in opposite)}")
    return _Pair(settings[1], scores, gains, different, notes)


def _gains(
    metric: Metric, pair: tuple[Side, Side], seeds: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(2, n) scores by side and seed, and (n,) gains of the first side over the second."""
    scores = np.array([[s.records[seed].scores[metric] for seed in seeds] for s in pair])
    return scores, (scores[0] - scores[1]) * (1 if metrics()[metric].higher_is_better else -1)


def _decide(claim: Ordering, pairs: list[_Pair], demo: bool) -> Verdict:
    """Verdict where all pairs are comparable and have two seeds or more."""
    confidence = 1 - statistics.ALPHA / len(pairs)
    halves = [half_width(np.std(p.gains, ddof=1), len(p.gains), confidence) for p in pairs]
    denied = [p for p, half in zip(pairs, halves, strict=True) if p.gains.mean() + half < 0]
    summaries = [(pair, summarise(list(pair.gains))) for pair in denied[:1] or pairs]
    closest, gain = min(summaries, key=lambda found: found[1].mean - found[1].half_width)
    sd, wins = float(np.std(closest.gains, ddof=1)), int((closest.gains > 0).sum())
    better, worse = closest.scores.mean(axis=1)
    size = Summary(abs(gain.mean), gain.half_width, gain.n)
    text = (
        f"{LABELS[claim.better.metric]} {better:.4g} against {worse:.4g}"
        f"{f' of {closest.worse}' if len(claim.worse) > 1 else ''}, "
        f"{'better' if gain.mean >= 0 else 'worse'} by {size} (95 % interval), paired over "
        f"{gain.n} seeds and better in {wins} of them"
    )
    if sd:
        value, low, high = statistics.probability_better(gain.mean, sd, gain.n)
        interval = f"95 % interval {low:.3f} to {high:.3f}, n = {gain.n}"
        text += f"; P(better with a new seed) {value:.3f} ({interval})"
    notes = "".join(f"; {note}" for note in dict.fromkeys(n for pair in pairs for n in pair.notes))
    if denied:
        return Verdict(DOES_NOT_HOLD[demo], text + notes, gain)
    if gain.mean > gain.half_width:
        return Verdict(HOLDS[demo], text + notes, gain)
    return inconclusive(text, gain, gain.mean, 0.0, sd, notes)
