"""Verdicts: what records say of a claim.

A printed score is decided by a test of equivalence (`report.equivalence`), an ordering by the
difference paired over seeds (`report.orderings`); both only between scores that are comparable
(`report.comparability`). Every number is a mean over all seeds. No claim of this paper is a
minimum over runs, so none is shown; a record whose checkpoint is the best of several says so in
its selection and is not comparable.
"""

import numpy as np

from cmrepro.paper import AbsoluteClaim, Ordering, claims
from cmrepro.records3 import RunRecord
from cmrepro.report.answers import Verdict, more_seeds
from cmrepro.report.comparability import Likeness, like_with_like
from cmrepro.report.equivalence import (
    ALPHA,
    half_width,
    is_equivalent,
    is_outside,
    seeds_to_decide,
)
from cmrepro.report.matching import Side, is_ablation, sides, trained_recipe
from cmrepro.report.orderings import ordering_verdict
from cmrepro.report.results import summarise

# What a record has to say of itself before it is set beside a printed score.
NEEDED = (
    "training data",
    "network",
    "protocol",
    "images scored",
    "images seen",
    "global batch",
    "training steps",
)


def absolute_verdict(claim: AbsoluteClaim, records: list[RunRecord]) -> Verdict:
    """The verdict on a printed score.

    Reproduced: two one-sided t tests at 5 % place the mean over seeds within the claim's margin,
    that is the whole 90 % interval lies inside. Not reproduced: the whole 95 % interval lies
    outside. Where several models are comparable and their answers differ, it is inconclusive.

    Args:
        claim: The claim.
        records: All that there are; those of the claim's recipe, steps and metric are looked at.
    """
    setting = claim.setting
    ours = [
        side
        for side in sides(records, setting.nfe, setting.metric)
        if trained_recipe(side.first) == setting.recipe
    ]
    if not ours:
        return Verdict(claim.id, "not measured", f"no record of {setting}")
    compared = [(side, _against(claim, side.first)) for side in ours]
    alike = [(side, likeness) for side, likeness in compared if not likeness.different]
    if not alike:
        side, nearest = min(
            compared, key=lambda pair: (is_ablation(pair[0].first), len(pair[1].different))
        )
        return Verdict(claim.id, "not comparable", f"{side.first.model}: {nearest}")
    found = [_decide(claim, side, likeness) for side, likeness in alike]
    if len({verdict.answer for verdict in found}) == 1:
        return found[0]
    reason = "; ".join(
        f"{side.first.model} {verdict.answer} ({verdict.reason})"
        for (side, _), verdict in zip(alike, found, strict=True)
    )
    return Verdict(claim.id, "inconclusive", f"the models disagree: {reason}")


def _against(claim: AbsoluteClaim, record: RunRecord) -> Likeness:
    """A claim and a record; what is needed of the record and not known counts as different."""
    found = like_with_like(claim, record)
    missing = {
        field: text
        for field, text in found.unknown.items()
        if field in NEEDED  # known of every claim
    }
    return Likeness(
        {**found.different, **{field: f"not known: {text}" for field, text in missing.items()}},
        {field: text for field, text in found.unknown.items() if field not in missing},
    )


def _decide(claim: AbsoluteClaim, side: Side, likeness: Likeness) -> Verdict:
    """The verdict on a printed score by records that are comparable with it."""
    values = list(side.scores(claim.setting.metric).values())
    notes = "".join(f"; {note}" for note in (side.remark, str(likeness)) if note)
    against = f"{claim.printed} with margin {claim.margin:.2g}"
    if not values:
        return Verdict(claim.id, "not comparable", f"no seed is left{notes}")
    mean = summarise(values)
    if mean.n == 1:
        reason = f"{mean} of 1 seed against {against}; a spread needs at least 2 seeds{notes}"
        return Verdict(claim.id, "inconclusive", reason, mean)
    distance, sd = mean.mean - claim.value, float(np.std(values, ddof=1))
    test = (distance, claim.margin, sd, mean.n)
    inner = half_width(sd, mean.n, 1 - 2 * ALPHA)
    seen = (
        f"{mean.mean:.4g} over {mean.n} seeds, {{}} % interval "
        f"{{:.4g}} to {{:.4g}}, against {against}"
    )
    reason = seen.format(90, mean.mean - inner, mean.mean + inner)
    if is_equivalent(*test):
        return Verdict(claim.id, "reproduced", reason + notes, mean)
    if is_outside(*test):
        reason = seen.format(95, mean.mean - mean.half_width, mean.mean + mean.half_width)
        return Verdict(claim.id, "not reproduced", reason + notes, mean)
    seeds = seeds_to_decide(distance, claim.margin, sd)
    return Verdict(
        claim.id,
        "inconclusive",
        f"{reason}; {more_seeds(seeds)}{notes}",
        mean,
        seeds_to_decide=seeds,
    )


def verdicts(records: list[RunRecord]) -> list[Verdict]:
    """One verdict a claim, in the order of the claims."""
    return [
        ordering_verdict(claim, records)
        if isinstance(claim, Ordering)
        else absolute_verdict(claim, records)
        for claim in claims()
    ]
