"""Statistics of verdicts: means and spreads over seeds, vectorised.

The scores of n seeds are independent draws of a normal distribution with mean mu and standard
deviation sigma; `mean` and `sd` (divisor n - 1) are their estimates. Two tests:

- mu within a margin of a value: two one-sided t tests, each at level `ALPHA` (Schuirmann 1987),
  that is, the whole 1 - 2 `ALPHA` = 90 % interval lies inside the margin.
- mu outside the margin: the whole 95 % interval lies outside. With the 90 % interval and a margin
  that is small against the spread, a mu equal to the value would be missed in 10 %.

Reference: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from cmrepro.schema import Struct

ALPHA = 0.05
Numbers = Any  # a float or an array of floats


class Summary(Struct, frozen=True):
    """Mean of one score over n seeds, and half its 95 % Student-t interval (NaN for n = 1)."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

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
