"""Statistics of verdicts: means and spreads over seeds, vectorised.

The scores of n seeds are independent draws of a normal distribution with mean mu and standard
deviation sigma; `mean` and `sd` (divisor n - 1) are their estimates. Two tests:

- mu within a margin of a value: two one-sided t tests, each at level `ALPHA` (Schuirmann 1987),
  that is, the whole 1 - 2 `ALPHA` = 90 % interval lies inside the margin.
- mu outside the margin: the whole 95 % interval lies outside. With the 90 % interval and a margin
  that is small against the spread, a mu equal to the value would be missed in 10 %.

References: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657; Lehmann and Romano, "Testing
Statistical Hypotheses" (2005), section 6.6 (noncentral t).
"""

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from cmrepro.schema import Struct

ALPHA = 0.05
POWER = 0.8  # with which `seeds_to_decide` seeds decide
MOST_SEEDS = 1000  # more are not counted
LARGEST_T = 300.0  # beyond it P is 0 or 1 to 10 digits, and scipy's inverse takes minutes

Numbers = Any  # a float or an array of floats


class Summary(Struct, frozen=True):
    """Mean of one score over n seeds, and half its 95 % Student-t interval (NaN for n = 1)."""

    mean: float
    half_width: float
    n: int

    def __str__(self) -> str:
        digits = 4 if abs(self.mean) < 1 else 2 if abs(self.mean) < 100 else 1
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def summarise(values: Sequence[float]) -> Summary:
    """Mean and Student-t interval of the values of independent seeds."""
    n = len(values)
    half = half_width(np.std(values, ddof=1), n) if n > 1 else math.nan
    return Summary(float(np.mean(values)), float(half), n)


def half_width(sd: Numbers, n: Numbers, confidence: Numbers = 1 - ALPHA) -> Numbers:
    """Half the Student-t interval of a mean of n >= 2 values."""
    return special.stdtrit(np.subtract(n, 1), (1 + confidence) / 2) * sd / np.sqrt(n)


def is_equivalent(distance: Numbers, margin: Numbers, sd: Numbers, n: Numbers) -> Numbers:
    """True if two one-sided t tests place mu within the margin; `distance` is mean - value."""
    return np.abs(distance) + half_width(sd, n, 1 - 2 * ALPHA) < margin


def is_outside(distance: Numbers, margin: Numbers, sd: Numbers, n: Numbers) -> Numbers:
    """True if the whole 95 % interval lies outside the margin; `distance` is mean - value."""
    return np.abs(distance) - half_width(sd, n) > margin


def probability_better(mean: Numbers, sd: Numbers, n: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """P(a difference > 0) = Phi(mu / sigma), with the ends of its 95 % interval.

    t = sqrt(n) mean / sd has a noncentral t distribution with noncentrality sqrt(n) mu / sigma;
    the ends are the noncentralities for which the observed t is the outer 2.5 % quantile. Needs
    sd > 0 and n >= 2.
    """
    root = np.sqrt(n)
    t = np.clip(root * mean / sd, -LARGEST_T, LARGEST_T)
    low, high = (special.nctdtrinc(np.subtract(n, 1), p, t) / root for p in (0.975, 0.025))
    return special.ndtr(mean / sd), special.ndtr(low), special.ndtr(high)


def answer_probabilities(
    distance: float, margin: float, sigma: float, n: int
) -> tuple[float, float]:
    """Probabilities of `is_equivalent` and of `is_outside` where mu - value and sigma are known.

    Midpoint rule over 400 quantiles of the observed standard deviation (error < 1/400).
    """
    quantiles = (np.arange(400) + 0.5) / 400
    sd = sigma * np.sqrt(special.chdtri(n - 1, quantiles) / (n - 1))
    error = sigma / math.sqrt(n)
    half = np.stack([margin - half_width(sd, n, 1 - 2 * ALPHA), margin + half_width(sd, n)])
    # P(|mean - value| < half)
    inside = special.ndtr((half - distance) / error) - special.ndtr((-half - distance) / error)
    return float(np.maximum(inside[0], 0).mean()), float(1 - inside[1].mean())


def seeds_to_decide(distance: float, margin: float, sigma: float) -> int | None:
    """Least number of seeds that give one of the two answers with probability `POWER`.

    The margin of an ordering is 0. None where more than `MOST_SEEDS` are needed.
    """
    if sigma == 0:
        return None if math.isclose(abs(distance), margin) else 2
    numbers = range(2, MOST_SEEDS + 1)
    seeds = 2 + bisect.bisect_left(
        numbers, POWER, key=lambda n: sum(answer_probabilities(distance, margin, sigma, n))
    )
    return seeds if seeds <= MOST_SEEDS else None
