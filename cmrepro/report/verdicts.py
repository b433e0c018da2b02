"""Verdicts: what records say of a claim."""

from dataclasses import dataclass

from cmrepro.paper import AbsoluteClaim, Ordering, Setting, claims, metrics
from cmrepro.records import RunRecord
from cmrepro.report.results import Summary, is_demo, recipe_of, summarise


@dataclass(frozen=True)
class Verdict:
    """What records say of one claim.

    Attributes:
        claim_id: Of the claim.
        answer: "not measured", "not comparable"; for orderings also "holds at demo scale",
            "does not hold at demo scale" or "inconclusive".
        reason: Why, in one line.
        difference: Of an ordering: by how much the better side is better, paired over seeds.
    """

    claim_id: str
    answer: str
    reason: str
    difference: Summary | None = None


def absolute_verdict(claim: AbsoluteClaim, records: list[RunRecord]) -> Verdict:
    """The verdict on a printed score: it needs records of its own recipe and protocol.

    Records of a demo model are not comparable with it, and say in what they differ.
    """
    setting = claim.setting
    ours = [r for r in records if recipe_of(r) == setting.recipe and r.nfe == setting.steps]
    if not ours:
        return Verdict(claim.id, "not measured", f"no record of {setting}")
    record = ours[0]
    differences = {
        "network": (f"that of {setting.recipe}", record.comparable["network"]),
        "protocol": (setting.protocol, record.protocol["name"]),
        "images scored": (claim.num_images, record.num_images),
        "images seen": (claim.images_seen, record.comparable["images_seen"]),
        "global batch": (claim.batch_size, record.comparable["global_batch"]),
    }
    listed = "; ".join(
        f"{name}: {paper} there, {mine} here"
        for name, (paper, mine) in differences.items()
        if paper != mine
    )
    return Verdict(claim.id, "not comparable", listed)


def ordering_verdict(claim: Ordering, records: list[RunRecord]) -> Verdict:
    """The verdict on an ordering at demo scale, paired over seeds (the same noise on both sides).

    It holds when, for every worse side, the whole 95 % interval of the mean difference lies on the
    claimed side of zero, and does not hold when, for one, it lies wholly on the other.
    """
    sides = [_side(claim.better, records), *(_side(worse, records) for worse in claim.worse)]
    if not all(sides):
        missing = [
            str(setting)
            for setting, side in zip((claim.better, *claim.worse), sides, strict=True)
            if not side
        ]
        return Verdict(claim.id, "not measured", f"no record of {'; '.join(missing)}")
    better, *worse = sides
    sign = 1 if metrics()[claim.better.metric].higher_is_better else -1
    closest: Summary | None = None
    for side in worse:
        seeds = sorted(better.keys() & side.keys())
        if len(seeds) < 2:
            return Verdict(
                claim.id,
                "inconclusive",
                f"{len(seeds)} seeds on both sides; at least 2 are needed",
            )
        difference = summarise([sign * (better[seed] - side[seed]) for seed in seeds])
        if closest is None or _low(difference) < _low(closest):
            closest = difference
    assert closest is not None
    if _low(closest) > 0:
        answer = "holds at demo scale"
    elif closest.mean + closest.half_width < 0:
        answer = "does not hold at demo scale"
    else:
        answer = "inconclusive"
    metric = metrics()[claim.better.metric].label
    reason = f"{metric} better by {closest}, paired over {closest.n} seeds (95 % interval)"
    return Verdict(claim.id, answer, reason, closest)


def _low(summary: Summary) -> float:
    return summary.mean - summary.half_width


def _side(setting: Setting, records: list[RunRecord]) -> dict[int, float]:
    """Score by seed of the demo models that stand for a setting without changes."""
    if setting.changes:
        return {}
    return {
        r.seed: r.scores[setting.metric]
        for r in records
        if is_demo(r)
        and recipe_of(r) == setting.recipe
        and r.nfe == setting.steps
        and r.seed is not None
    }


def verdicts(records: list[RunRecord]) -> list[Verdict]:
    """One verdict a claim, in the order of the claims."""
    return [
        absolute_verdict(claim, records)
        if isinstance(claim, AbsoluteClaim)
        else ordering_verdict(claim, records)
        for claim in claims()
    ]
