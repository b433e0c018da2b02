"""Statistics of verdicts: pure functions of means and spreads over seeds, vectorised.

The scores of n seeds are taken as independent draws of a normal distribution with mean mu and
standard deviation sigma; `mean` and `sd` (divisor n - 1) are theirs. Two questions are asked:

- Is mu within a margin of a value? Two one-sided t tests, each at level `ALPHA` (Schuirmann 1987).
  That is the same as: the whole 1 - 2 `ALPHA` = 90 % interval lies inside the margin. With mu on
  the margin's edge or beyond, the answer is a wrong yes in at most 5 %.
- Is mu outside? The whole 95 % interval has to lie outside. The 90 % interval will not do: where
  the margin is small against the spread, it misses a mu equal to the value in up to 10 %, the 95 %
  interval in at most 5 %.

Each shown interval covers as often as its name says, from 2 seeds on, for normal differences.
A percentile bootstrap of the share of pairs that A wins does not: of n = 3 wins every resample
gives 3, and the interval is one point (tests/test_report_verdicts_statistics.py has its coverage).
So P(A better) is Phi(mu / sigma) of the paired differences, whose interval is exact by the
noncentral t distribution. (Differences of skewness 0.45 in the place of normal ones: 92 to 97 %.)

References:
    Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for
    assessing the equivalence of average bioavailability", 1987.
    Lehmann and Romano, "Testing Statistical Hypotheses", 2005, Section 6.6 (noncentral t).
"""

import bisect
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

ALPHA = 0.05
CONFIDENCE = 1 - ALPHA  # of every interval that is shown without another name
POWER = 0.8  # with which the stated number of seeds would decide
MOST_SEEDS = 1000  # more are not counted
LARGEST_T = 300.0  # beyond it P is 0 or 1 to 10 digits, and scipy's inverse takes minutes

Numbers = Any  # a float or an array of floats, broadcast like numpy does


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
        n: Number of pairs.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        low, high = f"{self.low:.3f}", f"{self.high:.3f}"
        return f"{self.value:.3f} (95 % interval {low} to {high}, n = {self.n})"


def half_width(sd: Numbers, n: Numbers, confidence: Numbers = CONFIDENCE) -> Numbers:
    """Half the Student-t interval of a mean of n >= 2 values."""
    return special.stdtrit(np.subtract(n, 1), (1 + confidence) / 2) * sd / np.sqrt(n)


def is_equivalent(distance: Numbers, margin: Numbers, sd: Numbers, n: Numbers) -> Numbers:
    """Whether two one-sided t tests at level `ALPHA` place mu within the margin.

    Args:
        distance: Of the mean from the value.
        margin: At least 0.
        sd: Standard deviation over the seeds, divisor n - 1.
        n: Number of seeds, at least 2.
    """
    return np.abs(distance) + half_width(sd, n, 1 - 2 * ALPHA) < margin


def is_outside(distance: Numbers, margin: Numbers, sd: Numbers, n: Numbers) -> Numbers:
    """Whether the whole 95 % interval lies outside the margin; arguments of `is_equivalent`."""
    return np.abs(distance) - half_width(sd, n) > margin


def probability_better(
    mean: Numbers, sd: Numbers, n: Numbers
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """P(a difference > 0) = Phi(mu / sigma) with its 95 % interval.

    t = sqrt(n) mean / sd has a noncentral t distribution with noncentrality sqrt(n) mu / sigma;
    the ends are those noncentralities that put the t that was seen at the outer 2.5 %.

    Args:
        mean: Of the n differences.
        sd: Their standard deviation, divisor n - 1, above 0.
        n: Number of pairs, at least 2.

    Returns:
        Phi(mean / sd), lower end, upper end.
    """
    root = np.sqrt(n)
    t = np.clip(root * mean / sd, -LARGEST_T, LARGEST_T)
    low = special.nctdtrinc(np.subtract(n, 1), (1 + CONFIDENCE) / 2, t) / root
    high = special.nctdtrinc(np.subtract(n, 1), (1 - CONFIDENCE) / 2, t) / root
    return special.ndtr(mean / sd), special.ndtr(low), special.ndtr(high)


@functools.cache
def _spreads(n: int) -> NDArray[np.float64]:
    """400 quantiles of sd / sigma of n seeds."""
    quantiles = (np.arange(400) + 0.5) / 400
    return np.sqrt(special.chdtri(n - 1, quantiles) / (n - 1))


def answer_probabilities(
    distance: float, margin: float, sigma: float, n: int
) -> tuple[float, float]:
    """How often n seeds give each of the two answers, for known mu and sigma.

    Args:
        distance: Of mu from the value.
        margin: At least 0.
        sigma: True standard deviation over seeds, above 0.
        n: Number of seeds, at least 2.

    Returns:
        Probabilities of `is_equivalent` and of `is_outside`, by the midpoint rule over 400
        quantiles of the standard deviation seen (error below 1/400).
    """
    error, sd = sigma / math.sqrt(n), sigma * _spreads(n)

    def inside(half: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(|distance of the mean| < half)."""
        return special.ndtr((half - distance) / error) - special.ndtr((-half - distance) / error)

    equivalent = np.maximum(inside(margin - half_width(sd, n, 1 - 2 * ALPHA)), 0)
    return float(equivalent.mean()), float(1 - inside(margin + half_width(sd, n)).mean())


def seeds_to_decide(distance: float, margin: float, sigma: float) -> int | None:
    """The least number of seeds that give one of the two answers with probability `POWER`.

    Args:
        distance: Of mu from the value.
        margin: At least 0; 0 asks only for a difference, as orderings do.
        sigma: Standard deviation over seeds.

    Returns:
        2 to `MOST_SEEDS`, or None where more are needed.
    """
    if sigma == 0:
        return None if math.isclose(abs(distance), margin) else 2

    def power(n: int) -> float:
        return sum(answer_probabilities(distance, margin, sigma, n))

    counts = range(2, MOST_SEEDS + 1)
    place = bisect.bisect_left(counts, POWER, key=power)
    return counts[place] if place < len(counts) else None
