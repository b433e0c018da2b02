"""Error rates and coverage of what verdicts are made of, on seeds of known mean and spread.

Rates are counted in 10,000 draws, so that the standard error of 5 % is 0.22 points and three of
them, `NOISE`, are 0.65; intervals have to cover within 2 points of their name.
"""

import math

import numpy as np
import pytest
from scipy import stats

from cmrepro.report.statistics import (
    answer_probabilities,
    half_width,
    is_equivalent,
    is_outside,
    probability_better,
    seeds_to_decide,
)

DRAWS = 10_000
NOISE = 0.0065
SEEDS = (3, 5, 10)


def mean_and_sd(mu, sigma, n, draws=DRAWS):
    values = np.random.default_rng(0).normal(mu, sigma, (draws, n))
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


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("effect", [0.0, -0.5, 2.0])
def test_interval_of_the_probability_covers_as_its_name_says(n, effect):
    # 3,000 draws, since the noncentral t is slow: a standard error of 0.4 points.
    mean, sd = mean_and_sd(effect, 1.0, n, draws=3000)
    value, low, high = probability_better(mean, sd, n)
    truth = stats.norm.cdf(effect)
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.95, abs=0.02)
    assert np.all((low <= value) & (value <= high))


def test_ends_of_the_probability_are_those_of_the_noncentral_t():
    mean, sd, n = 1.2, 0.8, 6
    _, low, high = probability_better(mean, sd, n)
    t = math.sqrt(n) * mean / sd
    for end, share in ((low, 0.975), (high, 0.025)):
        noncentrality = math.sqrt(n) * stats.norm.ppf(end)
        # scipy's distribution is another implementation; 1e-6 is what its series give.
        assert stats.nct.cdf(t, n - 1, noncentrality) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 0.5), (0.8, 0.3), (1.5, 0.3), (0.0, 3.0)])
def test_probabilities_of_the_answers_are_those_of_a_simulation(n, mu, sigma):
    mean, sd = mean_and_sd(mu, sigma, n)
    equivalent, outside = answer_probabilities(mu, 1.0, sigma, n)
    # Three standard errors of a share of one half, and the midpoint rule's 1/400.
    assert equivalent == pytest.approx(is_equivalent(mean, 1.0, sd, n).mean(), abs=0.0175)
    assert outside == pytest.approx(is_outside(mean, 1.0, sd, n).mean(), abs=0.0175)


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_a_difference_are_those_of_a_paired_t_test(effect, seeds):
    # By the noncentral t: the least n at which the two-sided test at 5 % has 80 % power.
    def power(n):
        quantile = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(quantile, n - 1, effect * math.sqrt(n))

    assert power(seeds - 1) < 0.8 <= power(seeds)
    assert seeds_to_decide(effect, 0.0, 1.0) == seeds


def test_a_mean_on_the_edge_is_never_decided():
    assert seeds_to_decide(0.1, 0.1, 0.05) is None
    assert seeds_to_decide(0.0, 0.0, 1.0) is None
    assert seeds_to_decide(0.0, 1.0, 100.0) is None  # more than MOST_SEEDS
    assert seeds_to_decide(0.1, 0.1, 0.0) is None
    assert seeds_to_decide(0.0, 0.1, 0.0) == 2
