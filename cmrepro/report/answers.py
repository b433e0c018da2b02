"""What a verdict says."""

from dataclasses import dataclass

from cmrepro.report.equivalence import MOST_SEEDS, POWER, Interval
from cmrepro.report.results import Summary


@dataclass(frozen=True)
class Verdict:
    """What records say of one claim.

    Attributes:
        claim_id: Of the claim.
        answer: "not measured", "not comparable", "reproduced", "not reproduced" or
            "inconclusive"; of an ordering tested with the demo's models "holds at demo scale" or
            "does not hold at demo scale" in the place of (not) reproduced.
        reason: Why, in one line.
        mean: Of an absolute claim: the mean over seeds.
        difference: Of an ordering: by how much the better side is better, paired over seeds.
        probability: Of an ordering: P(the better side is better) on a new seed.
        seeds_to_decide: Of an inconclusive one with a spread: with how many seeds one of the
            answers would come with probability `POWER`, were mean and spread those seen; None
            also where more than `MOST_SEEDS`.
    """

    claim_id: str
    answer: str
    reason: str
    mean: Summary | None = None
    difference: Summary | None = None
    probability: Interval | None = None
    seeds_to_decide: int | None = None


def more_seeds(seeds: int | None) -> str:
    """How many seeds would decide, in words."""
    count = f"more than {MOST_SEEDS:,}" if seeds is None else f"{seeds}"
    return (
        f"were mean and spread as seen, {count} seeds would decide with power {100 * POWER:.0f} %"
    )
