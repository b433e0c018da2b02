"""Verdicts: what records say of a claim.

A printed score is decided by a test of equivalence, an ordering by the difference paired over
seeds (`report.statistics`); both between comparable scores only (`report.comparability`). Every
number is a mean over all seeds. No claim of this paper is a minimum over runs, so none is shown;
a record whose checkpoint is the best of several says so in its selection and is not comparable.
"""

from collections.abc import Sequence

import numpy as np

from cmrepro.paper import AbsoluteClaim, Ordering, claims
from cmrepro.records import RunRecord
from cmrepro.report.comparability import (
    Agreement,
    Side,
    against_claim,
    is_ablation,
    sides,
    trained,
)
from cmrepro.report.orderings import ordering_verdict
from cmrepro.report.statistics import (
    Verdict,
    half_width,
    is_equivalent,
    is_outside,
    more_seeds,
    seeds_to_decide,
    summarise,
)


def verdicts(records: Sequence[RunRecord]) -> dict[str, Verdict]:
    """The verdict on each claim by its id, in the order of the claims."""
    return {
        claim.id: ordering_verdict(claim, records)
        if isinstance(claim, Ordering)
        else absolute_verdict(claim, records)
        for claim in claims()
    }


def absolute_verdict(claim: AbsoluteClaim, records: Sequence[RunRecord]) -> Verdict:
    """Verdict on a printed score.

    Reproduced: two one-sided t tests at 5 % place the mean over seeds within the claim's margin,
    that is, the whole 90 % interval lies inside. Not reproduced: the whole 95 % interval lies
    outside. Inconclusive also where several models are comparable and their answers differ.
    """
    setting = claim.setting
    compared = [
        (side, against_claim(claim, side.first))
        for side in sides(records, setting.nfe, setting.metric)
        if (training := trained(side.first)) and training.stands_for == setting.recipe
    ]
    if not compared:
        return Verdict(claim.id, "not measured", f"no record of {setting}")
    comparable = [pair for pair in compared if not pair[1].different]
    if not comparable:
        side, agreement = min(
            compared, key=lambda pair: (is_ablation(pair[0].first), len(pair[1].different))
        )
        return Verdict(claim.id, "not comparable", f"{side.first.model}: {agreement}")
    found = [_decide_score(claim, side, agreement) for side, agreement in comparable]
    if len({verdict.answer for verdict in found}) == 1:
        return found[0]
    reason = "; ".join(
        f"{side.first.model} {verdict.answer} ({verdict.reason})"
        for (side, _), verdict in zip(comparable, found, strict=True)
    )
    return Verdict(claim.id, "inconclusive", f"the models disagree: {reason}")


def _decide_score(claim: AbsoluteClaim, side: Side, agreement: Agreement) -> Verdict:
    """Verdict on a printed score by comparable records."""
    values = list(side.scores(claim.setting.metric).values())
    notes = "".join(f"; {note}" for note in (side.remark, str(agreement)) if note)
    against = f"{claim.printed} with margin {claim.margin:.2g}"
    if not values:
        return Verdict(claim.id, "not comparable", f"no seed is left{notes}")
    mean = summarise(values)
    if mean.n == 1:
        reason = f"{mean} of 1 seed against {against}; a spread needs at least 2 seeds{notes}"
        return Verdict(claim.id, "inconclusive", reason, mean)
    distance, sd = mean.mean - claim.value, float(np.std(values, ddof=1))

    def reason_with(percent: int) -> str:
        half = half_width(sd, mean.n, percent / 100)
        return (
            f"{mean.mean:.4g} over {mean.n} seeds, {percent} % interval "
            f"{mean.mean - half:.4g} to {mean.mean + half:.4g}, against {against}"
        )

    if is_equivalent(distance, claim.margin, sd, mean.n):
        return Verdict(claim.id, "reproduced", reason_with(90) + notes, mean)
    if is_outside(distance, claim.margin, sd, mean.n):
        return Verdict(claim.id, "not reproduced", reason_with(95) + notes, mean)
    seeds = seeds_to_decide(distance, claim.margin, sd)
    reason = f"{reason_with(90)}; {more_seeds(seeds)}{notes}"
    return Verdict(claim.id, "inconclusive", reason, mean, seeds_to_decide=seeds)
