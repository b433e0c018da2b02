"""Verdicts: what records say of a claim."""

from dataclasses import dataclass

from cmrepro.paper import AbsoluteClaim, Ordering, Setting, claims, metrics
from cmrepro.records import RunRecord
from cmrepro.report.results import LABELS, Summary, is_demo, recipe_name, recipe_of, summarise


@dataclass(frozen=True)
class Verdict:
    """What records say of one claim.

    Attributes:
        claim_id: Of the claim.
        answer: "not measured", "not comparable", "reproduced", "not reproduced" or
            "inconclusive"; of an ordering "holds at demo scale" or "does not hold at demo scale"
            in the place of (not) reproduced.
        reason: Why, in one line.
        difference: Of an ordering: by how much the better side is better, paired over seeds.
    """

    claim_id: str
    answer: str
    reason: str
    difference: Summary | None = None


def absolute_verdict(claim: AbsoluteClaim, records: list[RunRecord]) -> Verdict:
    """The verdict on a printed score.

    Records are comparable where network, protocol, images scored, images seen and batch agree; a
    demo model's are not. The claim is reproduced when the whole 95 % interval of the mean over
    seeds lies within the claim's margin, and not when it lies wholly outside.
    """
    setting = claim.setting
    ours = [r for r in records if recipe_of(r) == setting.recipe and r.nfe == setting.steps]
    if not ours:
        return Verdict(claim.id, "not measured", f"no record of {setting}")
    record = ours[0]
    differences = {
        "recipe": (setting.recipe, recipe_name(record)),
        "protocol": (setting.protocol, record.protocol["name"]),
        "images scored": (claim.num_images, record.num_images),
        "images seen": (claim.images_seen, record.comparable["images_seen"]),
        "global batch": (claim.batch_size, record.comparable["global_batch"]),
    }
    different = "; ".join(
        f"{name} {_text(paper)} there, {_text(mine)} here"
        for name, (paper, mine) in differences.items()
        if paper != mine
    )
    if different:
        return Verdict(claim.id, "not comparable", different)
    mean = summarise([r.scores[setting.metric] for r in ours])
    reason = f"{mean} over {mean.n} seeds against {claim.printed} with margin {claim.margin:.2g}"
    distance = abs(mean.mean - claim.value)
    if distance + mean.half_width <= claim.margin:
        return Verdict(claim.id, "reproduced", reason)
    if distance - mean.half_width > claim.margin:
        return Verdict(claim.id, "not reproduced", reason)
    return Verdict(claim.id, "inconclusive", reason)  # also with one seed: its interval is NaN


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
    reason = f"{LABELS[claim.better.metric]} better by {closest}, paired over {closest.n} seeds"
    return Verdict(claim.id, answer, reason, closest)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _low(summary: Summary) -> float:
    return summary.mean - summary.half_width


def _side(setting: Setting, records: list[RunRecord]) -> dict[int, float]:
    """Score by seed of the demo models that stand for a setting without changes.

    Where there are records of several numbers of images, those of the most.
    """
    if setting.changes:
        return {}
    chosen = [
        r
        for r in records
        if is_demo(r) and recipe_of(r) == setting.recipe and r.nfe == setting.steps
    ]
    most = max((r.num_images for r in chosen), default=0)
    return {
        r.seed: r.scores[setting.metric]
        for r in chosen
        if r.num_images == most and r.seed is not None
    }


def verdicts(records: list[RunRecord]) -> list[Verdict]:
    """One verdict a claim, in the order of the claims."""
    return [
        absolute_verdict(claim, records)
        if isinstance(claim, AbsoluteClaim)
        else ordering_verdict(claim, records)
        for claim in claims()
    ]
