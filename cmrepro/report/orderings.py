"""Verdicts on orderings: one model against others, paired over seeds (the same noise)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.paper import (
    ABLATED,
    AbsoluteClaim,
    Ordering,
    Setting,
    ablated_fields,
    claims,
    metrics,
)
from cmrepro.records3 import RunRecord
from cmrepro.report.answers import Verdict, more_seeds
from cmrepro.report.comparability import HOW_TRAINED, differing, like_with_like
from cmrepro.report.equivalence import (
    ALPHA,
    Interval,
    half_width,
    probability_better,
    seeds_to_decide,
)
from cmrepro.report.matching import Side, sides, stands_for
from cmrepro.report.results import LABELS, Summary, recipe_name, summarise

NAMES = ("for the better", "for the worse")
HOLDS = {True: "holds at demo scale", False: "reproduced"}
DOES_NOT_HOLD = {True: "does not hold at demo scale", False: "not reproduced"}
# What follows from an ablated field: N and mu are fixed or follow a schedule.
FOLLOWING = {"num_scales": ("s0", "s1", "schedule_steps"), "target_ema": ("mu0",)}
# Recipe fields that cannot move a score, or that `like_with_like` compares.
ELSEWHERE = (
    *ABLATED,
    *("name", "variant", "method", "num_gpus", "two_step_index", "schedule_steps"),
    *("dataset", "network", "initialisation", "batch_size", "ema_rate", "total_steps"),
)


@dataclass(frozen=True)
class _Pair:
    """The better side and one worse side.

    Attributes:
        worse: Setting of the worse side.
        scores: (2, n) of the better and of the worse side, one a seed that both have.
        gains: (n,) by how much the better side is better with that seed.
        different: What makes the two not comparable, in words.
        notes: What else the reader has to know.
    """

    worse: Setting
    scores: NDArray[np.float64]
    gains: NDArray[np.float64]
    different: list[str]
    notes: list[str]

    @property
    def sd(self) -> float:
        """Standard deviation of the gains; needs two."""
        return float(np.std(self.gains, ddof=1))


def ordering_verdict(claim: Ordering, records: list[RunRecord]) -> Verdict:
    """The verdict on an ordering: by models of the paper's size, or else by the demo's.

    It holds when, for every worse side, the whole 95 % interval of the mean difference lies on the
    claimed side of zero. It does not hold when for one of the K worse sides the interval lies
    wholly on the other; there the interval is that of 1 - 5 % / K, so that a claim of which no
    part is wrong is denied in at most 5 %.

    Args:
        claim: The claim.
        records: All that there are.
    """
    settings = (claim.better, *claim.worse)
    missing: list[list[Setting]] = []
    found: list[Verdict] = []
    for demo in (False, True):
        candidates = [
            [
                side
                for side in sides(records, setting.nfe, setting.metric)
                if stands_for(side.first, setting, demo)
            ]
            for setting in settings
        ]
        missing.append([s for s, of in zip(settings, candidates, strict=True) if not of])
        if not missing[-1]:
            found.append(_by_candidates(claim, candidates, demo))
    if not found:
        of_paper, of_demo = missing
        fewest = of_demo if len(of_demo) <= len(of_paper) else of_paper
        reason = f"no record of {'; '.join(map(str, fewest))}"
        return Verdict(claim.id, "not measured", reason)
    comparable = [verdict for verdict in found if verdict.answer != "not comparable"]
    return (comparable or found)[0]


def _by_candidates(claim: Ordering, candidates: list[list[Side]], demo: bool) -> Verdict:
    """The verdict where every setting has records; which are taken never depends on scores."""
    conditions = set.intersection(*({side.condition for side in of} for of in candidates))
    if not conditions:
        one, scoring = candidates[0][0].first, {"evaluations", *HOW_TRAINED}
        found = [like_with_like(one, of[0].first, scoring, NAMES) for of in candidates[1:]]
        texts = [text for other in found for text in other.different.values()]
        reason = "; ".join(texts) or "no two sides were scored against the same reference"
        return Verdict(claim.id, "not comparable", reason)
    condition = max(sorted(conditions), key=lambda found: found[2])  # the most images
    better, *others = [
        sorted((s for s in of if s.condition == condition), key=_fullness, reverse=True)
        for of in candidates
    ]
    tried = [_pairs(claim, best, others, demo) for best in better]
    alike = [pairs for pairs in tried if not any(pair.different for pair in pairs)]
    pairs = (alike or tried)[0]
    for pair in pairs:
        if pair.different:
            return Verdict(claim.id, "not comparable", "; ".join(pair.different))
    for pair in pairs:
        if len(pair.gains) < 2:
            seeds = f"{len(pair.gains)} seeds on both sides; at least 2 are needed"
            return Verdict(claim.id, "inconclusive", "; ".join([seeds, *pair.notes]))
    return _decide(claim, pairs, demo)


def _fullness(side: Side) -> tuple[int, bool]:
    """More for a side with more seeds, then for one that is called like its recipe."""
    return len(side.records), side.first.model == recipe_name(side.first)


def _pairs(claim: Ordering, best: Side, others: list[list[Side]], demo: bool) -> list[_Pair]:
    """A better side with one worse side a setting: the first that is comparable, or the first."""
    pairs = []
    for setting, of in zip(claim.worse, others, strict=True):
        same = [side for side in of if _checksum(side) == _checksum(best)]
        tried = [_pair(claim.better, best, setting, side, demo) for side in same or of]
        pairs.append(next((pair for pair in tried if not pair.different), tried[0]))
    return pairs


def _checksum(side: Side) -> str:
    return str(side.first.checkpoint["sha256"])


def _pair(better: Setting, a: Side, worse: Setting, b: Side, demo: bool) -> _Pair:
    """Two sides with their differences of every seed that both have."""
    different, notes = _unlike((better, worse), (a, b), demo)
    one, two = a.scores(better.metric), b.scores(better.metric)
    common = sorted(one.keys() & two.keys())
    mine, theirs = a.first.sampler, b.first.sampler
    if (a.first.nfe, mine.get("num_images")) != (b.first.nfe, theirs.get("num_images")):
        notes.append("paired by seed alone, as the two sides draw different amounts of noise")
    else:
        hashes = {s: (_noise(a, s), _noise(b, s)) for s in common}
        if other := [s for s in common if None not in hashes[s] and len(set(hashes[s])) > 1]:
            common = [s for s in common if s not in other]
            notes.append(f"without seed {', '.join(map(str, other))}, whose noise differs")
            if not common:
                different.append("the noise of every seed differs")
        if any(None in hashes[s] for s in common):
            notes.append("paired by seed alone, as a side does not record its noise")
    notes += [
        f"{side.remark} {name}" for side, name in zip((a, b), NAMES, strict=True) if side.remark
    ]
    if one and two and not common and not different:
        notes.append("no seed in common")
    gains = _gains(better.metric, a, b, common)
    others = [
        label
        for metric, label in LABELS.items()
        if metric in a.first.scores.keys() & b.first.scores.keys()
        and (_gains(metric, a, b, common) * gains.sum() < 0).all()
    ]
    if len(common) > 1 and others:
        notes.append(f"the other way with every seed: {', '.join(others)}")
    scores = np.array([[of[seed] for seed in common] for of in (one, two)], np.float64)
    return _Pair(worse, scores, gains, different, notes)


def _gains(metric: str, a: Side, b: Side, seeds: list[int]) -> NDArray[np.float64]:
    """(n,) by how much one side is better than another, one a seed."""
    sign = 1 if metrics()[metric].higher_is_better else -1
    one, two = a.scores(metric), b.scores(metric)
    return np.array([sign * (one[s] - two[s]) for s in seeds], np.float64)


def _noise(side: Side, seed: int) -> str | None:
    return side.records[seed].hashes.get("noise")


def _unlike(
    settings: tuple[Setting, Setting], pair: tuple[Side, Side], demo: bool
) -> tuple[list[str], list[str]]:
    """What makes two sides not comparable, and what is not known of them or differs by method."""
    records = (pair[0].first, pair[1].first)
    different: dict[str, str] = {}
    unknown: dict[str, str] = {}
    if not demo:
        for setting, record, name in zip(settings, records, NAMES, strict=True):
            changed = {field for field, _ in setting.changes}
            found = like_with_like(_unchanged(setting), record, changed, ("in the paper", name))
            different |= found.different
            unknown |= found.unknown
    otherwise: list[str] = []
    if _checksum(pair[0]) != _checksum(pair[1]):
        same_recipe = settings[0].recipe == settings[1].recipe
        wanted = [ablated_fields(s.recipe, s.changes, demo) or {} for s in settings]
        changed = {field for field in ABLATED if wanted[0].get(field) != wanted[1].get(field)}
        leave_out = changed if same_recipe else HOW_TRAINED
        found = like_with_like(*records, {"evaluations", *leave_out}, NAMES)
        different |= found.different
        unknown |= found.unknown
        if same_recipe:
            different |= _recipe_differences(records, changed)
            if not changed:
                different["model"] = (
                    f"model {differing((records[0].model, records[1].model), NAMES)}"
                )
        else:
            said = {"images seen", "global batch", "initialisation", "distance"}
            leave_out = {"evaluations", *HOW_TRAINED} - said
            otherwise = list(like_with_like(*records, leave_out, NAMES).different.values())
    notes = [f"trained otherwise: {', '.join(otherwise)}"] if otherwise else []
    if unknown:
        notes.append(f"not known: {', '.join(unknown.values())}")
    return list(different.values()), notes


def _unchanged(setting: Setting) -> AbsoluteClaim:
    """The printed score of a setting's recipe as it stands."""
    plain = replace(setting, changes=())
    return next(c for c in claims() if isinstance(c, AbsoluteClaim) and c.setting == plain)


def _recipe_differences(records: tuple[RunRecord, RunRecord], changed: set[str]) -> dict[str, str]:
    """Further recipe fields, and the teacher, where both sides say them and they differ."""
    following = {name for field in changed for name in FOLLOWING.get(field, ())}
    sides_: list[dict[str, Any]] = []
    for record in records:
        recipe, origin = record.checkpoint.get("recipe", {}), record.checkpoint.get("origin", {})
        own = {k: v for k, v in recipe.items() if k not in ELSEWHERE and k not in following}
        teacher = origin.get("teacher_sha256")
        sides_.append(own | {"teacher": teacher and teacher[:10]})
    one, two = sides_
    return {
        field: f"{field} {differing((one[field], two[field]), NAMES)}"
        for field in one.keys() & two.keys()
        if one[field] != two[field]
    }


def _decide(claim: Ordering, pairs: list[_Pair], demo: bool) -> Verdict:
    """The verdict where all pairs are comparable and have two seeds or more."""
    closest, nearest = min(
        ((pair, summarise(list(pair.gains))) for pair in pairs),
        key=lambda found: found[1].mean - found[1].half_width,
    )
    denied = [
        pair
        for pair in pairs
        if pair.gains.mean() + half_width(pair.sd, len(pair.gains), 1 - ALPHA / len(pairs)) < 0
    ]
    if denied:
        closest, nearest = denied[0], summarise(list(denied[0].gains))
        answer = DOES_NOT_HOLD[demo]
    else:
        answer = HOLDS[demo] if nearest.mean > nearest.half_width else "inconclusive"
    seeds = None
    probability = _probability(closest)
    parts = [_in_words(claim, closest, nearest, probability)]
    if answer == "inconclusive":
        seeds = seeds_to_decide(nearest.mean, 0.0, closest.sd)
        parts.append(more_seeds(seeds))
    notes = dict.fromkeys(note for pair in pairs for note in pair.notes)
    return Verdict(
        claim.id,
        answer,
        "; ".join([*parts, *notes]),
        difference=nearest,
        probability=probability,
        seeds_to_decide=seeds,
    )


def _probability(pair: _Pair) -> Interval | None:
    """P(the better side is better) on a new seed; None where all differences are the same."""
    n = len(pair.gains)
    if pair.sd == 0:
        return None
    value, low, high = probability_better(pair.gains.mean(), pair.sd, n)
    return Interval(float(value), float(low), float(high), n)


def _in_words(
    claim: Ordering, pair: _Pair, difference: Summary, probability: Interval | None
) -> str:
    than = f" of {pair.worse}" if len(claim.worse) > 1 else ""
    wins = int((pair.gains > 0).sum())
    one, two = pair.scores.mean(axis=1)
    by = f"better by {difference}"
    if difference.mean < 0:
        by = f"worse by {replace(difference, mean=-difference.mean)}"
    text = (
        f"{LABELS[claim.better.metric]} {one:.4g} against {two:.4g}{than}, {by} "
        f"(95 % interval), paired over {difference.n} seeds and better in {wins} of them"
    )
    return f"{text}; P(better with a new seed) {probability}" if probability else text
