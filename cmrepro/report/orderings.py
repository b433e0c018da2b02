"""Verdicts on orderings: one model against others, paired over seeds (the same noise)."""

from collections.abc import Sequence
from itertools import product

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
from cmrepro.records import RunRecord
from cmrepro.report.comparability import (
    DATA_AND_SIZE,
    FIELDS,
    MODEL,
    SAMPLING,
    SCORING,
    TRAINING,
    Side,
    compare_facts,
    facts,
    in_words,
    is_of,
    sampling_agreement,
    sides,
    trained,
)
from cmrepro.report.statistics import (
    ALPHA,
    Interval,
    Summary,
    Verdict,
    half_width,
    more_seeds,
    probability_better,
    seeds_to_decide,
    summarise,
)
from cmrepro.report.tables import LABELS
from cmrepro.schema import Struct, to_builtins
from cmrepro.settings import Metric

NAMES = ("for the better", "for the worse")
HOLDS = {True: "holds at demo scale", False: "reproduced"}
DOES_NOT_HOLD = {True: "does not hold at demo scale", False: "not reproduced"}
# Recipe fields that follow from an ablated one: N and mu are fixed or follow a schedule.
FOLLOWING = {"num_scales": ("s0", "s1"), "target_ema": ("mu0",)}
# Recipe fields that can move a score and that `facts` does not hold.
RECIPE_FIELDS = (
    *("optimizer", "learning_rate", "inverse_sqrt_after", "linear_decay_share", "dropout"),
    *("horizontal_flip", "mixed_precision", "sigma_min", "sigma_max", "rho", "sigma_data"),
    *("mu_form", "mu0", "s0", "s1"),
)


class _Pair(Struct, frozen=True):
    """The better side and one worse side.

    Attributes:
        worse: Setting of the worse side.
        scores: (2, n) of the better and of the worse side, by common seed.
        gains: (n,) by which the better side is better.
        different: Fields in which the two are not comparable, in words.
        notes: Remarks for the reader.
    """

    worse: Setting
    scores: NDArray[np.float64]
    gains: NDArray[np.float64]
    different: list[str]
    notes: list[str]

    @property
    def sd(self) -> float:
        """Standard deviation of two or more gains."""
        return float(np.std(self.gains, ddof=1))


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
        candidates = [
            [s for s in sides(records, x.nfe, x.metric) if is_of(s.first, x, demo)]
            for x in settings
        ]
        missing.append([x for x, of in zip(settings, candidates, strict=True) if not of])
        if not missing[-1]:
            found.append(_by_candidates(claim, candidates, demo))
    if not found:
        fewest = min(missing, key=len)
        reason = f"no record of {'; '.join(map(str, fewest))}"
        return Verdict(claim.id, "not measured", reason)
    return min(reversed(found), key=lambda verdict: verdict.answer == "not comparable")


def _by_candidates(claim: Ordering, candidates: list[list[Side]], demo: bool) -> Verdict:
    """Verdict where every setting has records; the choice among them never depends on scores."""
    for i, of in enumerate(candidates):
        agreements = [sampling_agreement(side.first) for side in of]
        candidates[i] = [s for s, each in zip(of, agreements, strict=True) if not each.different]
        if not candidates[i]:
            return Verdict(claim.id, "not comparable", f"{of[0].first.model}: {agreements[0]}")
    combinations = [c for c in product(*candidates) if len({side.condition for side in c}) == 1]
    if not combinations:
        first, *rest = [facts(of[0].first) for of in candidates]
        fields = (*SCORING, *DATA_AND_SIZE)
        found = [str(compare_facts(first, other, fields, NAMES)) for other in rest]
        reason = "; ".join(filter(None, found)) or "scored against different reference statistics"
        return Verdict(claim.id, "not comparable", reason)
    tried = []
    for better, *others in sorted(combinations, key=_preference, reverse=True):
        sides_of = zip(claim.worse, others, strict=True)
        pairs = [_pair((claim.better, worse), (better, side), demo) for worse, side in sides_of]
        tried.append(pairs)
        if not any(pair.different for pair in pairs):
            break
    else:
        pairs = tried[0]
    for pair in pairs:
        if pair.different:
            return Verdict(claim.id, "not comparable", "; ".join(pair.different))
        if len(pair.gains) < 2:
            seeds = f"{len(pair.gains)} seeds on both sides; at least 2 are needed"
            return Verdict(claim.id, "inconclusive", "; ".join([seeds, *pair.notes]))
    return _decide(claim, pairs, demo)


def _preference(sides_of: Sequence[Side]) -> tuple[int, int, int]:
    """Greater for more images, then more seeds, then more models named like their recipes."""
    firsts = [side.first for side in sides_of]
    named = [r for r in firsts if (c := r.checkpoint) and c.recipe and c.recipe.name == r.model]
    return firsts[0].num_images, sum(len(side.records) for side in sides_of), len(named)


def _pair(settings: tuple[Setting, Setting], pair: tuple[Side, Side], demo: bool) -> _Pair:
    """Two sides with their differences by common seed."""
    (a, b), metric = pair, settings[0].metric
    different, notes = _disagreement(settings, pair, demo)
    common = sorted(a.scores(metric).keys() & b.scores(metric).keys())
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
    gains = _gains(metric, pair, common)
    opposite = [
        label
        for other, label in LABELS.items()
        if other in a.first.scores.keys() & b.first.scores.keys()
        and (_gains(other, pair, common) * gains.sum() < 0).all()
    ]
    if len(common) > 1 and opposite:
        notes.append(f"the other way with every seed: {', '.join(opposite)}")
    scores = [[side.records[seed].scores[metric] for seed in common] for side in pair]
    return _Pair(settings[1], np.array(scores, np.float64), gains, different, notes)


def _gains(metric: Metric, pair: tuple[Side, Side], seeds: list[int]) -> NDArray[np.float64]:
    """(n,) by which the first side is better than the second, by seed."""
    sign = 1 if metrics()[metric].higher_is_better else -1
    a, b = (np.array([s.records[seed].scores[metric] for seed in seeds]) for s in pair)
    return np.asarray(sign * (a - b), np.float64)


def _disagreement(
    settings: tuple[Setting, Setting], pair: tuple[Side, Side], demo: bool
) -> tuple[list[str], list[str]]:
    """Fields in which two sides are not comparable, and notes on the rest, in words."""
    records = (pair[0].first, pair[1].first)
    different: dict[str, str] = {}
    unknown: dict[str, str] = {}
    notes = []
    for setting, record, name in () if demo else zip(settings, records, NAMES, strict=True):
        changed = (*SAMPLING, *(field for field, _ in setting.changes))
        fields = [field for field in FIELDS if field not in changed]
        paper = facts(_printed(setting))
        found = compare_facts(paper, facts(record), fields, ("in the paper", name))
        different, unknown = different | found.different, unknown | found.unknown
    if pair[0].checksum != pair[1].checksum:
        a, b = facts(records[0]), facts(records[1])
        fields = [*SCORING, *DATA_AND_SIZE]
        if settings[0].recipe == settings[1].recipe:
            wanted = [ablated_fields(s.recipe, s.changes, demo) or {} for s in settings]
            changed = tuple(f for f in ABLATED if wanted[0].get(f) != wanted[1].get(f))
            fields += [field for field in (*TRAINING, *MODEL) if field not in changed]
            different |= _recipe_differences(records, changed)
        else:
            trained_by = ("images_seen", "batch_size", "initialisation", "distance")
            otherwise = compare_facts(a, b, trained_by, NAMES).different
            notes += [f"trained otherwise: {', '.join(otherwise.values())}"] if otherwise else []
        found = compare_facts(a, b, fields, NAMES)
        different, unknown = different | found.different, unknown | found.unknown
    notes += [f"not known: {', '.join(unknown.values())}"] if unknown else []
    return list(different.values()), notes


def _printed(setting: Setting) -> AbsoluteClaim:
    """The printed score of a setting's recipe without changes."""
    plain = Setting(setting.recipe, setting.nfe, setting.protocol, setting.metric)
    return next(c for c in claims() if isinstance(c, AbsoluteClaim) and c.setting == plain)


def _recipe_differences(
    records: tuple[RunRecord, RunRecord], changed: Sequence[str]
) -> dict[str, str]:
    """Further recipe fields, and the teacher, where both sides state them and they differ.

    Two checkpoints of one recipe without a changed field differ in any case.
    """
    if not changed:
        return {"model": f"model {in_words((records[0].model, records[1].model), NAMES)}"}
    following = [name for field in changed for name in FOLLOWING.get(field, ())]
    values = []
    for record in records:
        recipe = to_builtins(record.checkpoint and record.checkpoint.recipe) or {}
        training = trained(record)
        teacher = training and training.teacher_sha256
        stated = {k: recipe[k] for k in RECIPE_FIELDS if k in recipe and k not in following}
        values.append(stated | {"teacher": teacher and teacher[:10]})
    a, b = values
    return {
        field: f"{field} {in_words((a[field], b[field]), NAMES)}"
        for field in a
        if field in b and a[field] != b[field]
    }


def _decide(claim: Ordering, pairs: list[_Pair], demo: bool) -> Verdict:
    """Verdict where all pairs are comparable and have two seeds or more."""
    denied = [
        pair
        for pair in pairs
        if pair.gains.mean() + half_width(pair.sd, len(pair.gains), 1 - ALPHA / len(pairs)) < 0
    ]
    summaries = [(pair, summarise(list(pair.gains))) for pair in denied[:1] or pairs]
    closest, gain = min(summaries, key=lambda found: found[1].mean - found[1].half_width)
    answer = HOLDS[demo] if gain.mean > gain.half_width else "inconclusive"
    if denied:
        answer = DOES_NOT_HOLD[demo]
    probability = None
    if closest.sd:
        value, low, high = probability_better(gain.mean, closest.sd, gain.n)
        probability = Interval(float(value), float(low), float(high), gain.n)
    parts = [_in_words(claim, closest, gain, probability)]
    seeds = None
    if answer == "inconclusive":
        seeds = seeds_to_decide(gain.mean, 0.0, closest.sd)
        parts.append(more_seeds(seeds))
    notes = dict.fromkeys(note for pair in pairs for note in pair.notes)
    reason = "; ".join([*parts, *notes])
    return Verdict(
        claim.id, answer, reason, None, gain, probability=probability, seeds_to_decide=seeds
    )


def _in_words(claim: Ordering, pair: _Pair, gain: Summary, probability: Interval | None) -> str:
    than = f" of {pair.worse}" if len(claim.worse) > 1 else ""
    better, worse = pair.scores.mean(axis=1)
    by = "better" if gain.mean >= 0 else "worse"
    text = (
        f"{LABELS[claim.better.metric]} {better:.4g} against {worse:.4g}{than}, {by} by "
        f"{Summary(abs(gain.mean), gain.half_width, gain.n)} (95 % interval), paired over "
        f"{gain.n} seeds and better in {int((pair.gains > 0).sum())} of them"
    )
    return f"{text}; P(better with a new seed) {probability}" if probability else text
