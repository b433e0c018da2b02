"""Error rates and coverage of what verdicts are made of, on seeds of known mean and spread.

Rates are counted in 10,000 draws, so that the standard error of 5 % is 0.22 points and three of
them, `NOISE`, are 0.65; intervals have to cover within 2 points of their name.
"""

import numpy as np
import pytest

from cmrepro.report.statistics import half_width, is_equivalent, is_outside

DRAWS = 10_000
NOISE = 0.0065
SEEDS = (3, 5, 10)


def mean_and_sd(mu, sigma, n):
    values = np.random.default_rng(0).normal(mu, sigma, (DRAWS, n))
    return values.mean(1), values.std(1, ddof=1)


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_reproduced_is_wrong_in_at_most_5_percent(n, sigma):
    mean, sd = mean_and_sd(1.0, sigma, n)
    rate = is_equivalent(mean, 1.0, sd, n).mean()
    assert rate <= 0.05 + NOISE
    # With a small spread only one of the two tests can fail: a 95 % interval would give 2.5 %.
    assert sigma > 0.02 or rate == pytest.approx(0.05, abs=NOISE)


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("margin", [0.0, 0.01, 0.5, 2.0])
def test_not_reproduced_is_wrong_in_at_most_5_percent(n, margin):
    mean, sd = mean_and_sd(0.0, 1.0, n)
    assert is_outside(mean, margin, sd, n).mean() <= 0.05 + NOISE


@pytest.mark.parametrize("n", [2, *SEEDS])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_intervals_of_means_cover_as_their_name_says(n, confidence):
    # Paired differences are means too: here of seeds that share most of their spread.
    generator = np.random.default_rng(1)
    common = generator.normal(0, 5, (DRAWS, n))
    better, worse = (common + generator.normal(mu, 1, (DRAWS, n)) for mu in (3.0, 5.0))
    for values, mu in ((better, 3.0), (better - worse, -2.0)):
        mean, sd = values.mean(1), values.std(1, ddof=1)
        covered = np.abs(mean - mu) <= half_width(sd, n, confidence)
        assert covered.mean() == pytest.approx(confidence, abs=0.02)
