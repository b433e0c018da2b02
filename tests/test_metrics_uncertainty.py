"""Standard errors and intervals against repeated experiments, and FID at infinitely many images.

Coverage is counted over some hundred synthetic sample sets with fixed seeds; the bounds are those
of the counting, three standard deviations of a binomial, unless said otherwise.
"""

from typing import Any

import numpy as np
import pytest

from cmrepro.metrics.definitions import (
    StreamingMoments,
    class_probabilities,
    frechet_distance,
    inception_score,
    kernel_distance,
)
from cmrepro.metrics.manifolds import manifold_scores
from cmrepro.metrics.uncertainty import (
    bootstrap_is_error,
    bootstrap_kid_error,
    bootstrap_mean_error,
    fid_by_num_images,
    fid_infinity,
    interval,
    resampling_weights,
)

Measured = list[tuple[float, float]]  # value and standard error of each experiment


def spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1))


def coverage(measured: Measured, truth: float) -> float:
    """Share of experiments whose interval holds the truth."""
    intervals = [interval(value, error) for value, error in measured]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def error_over_spread(measured: Measured) -> float:
    """Mean standard error over the standard deviation that the values really have."""
    values, errors = zip(*measured, strict=True)
    return float(np.mean(errors)) / spread(list(values))


def test_an_interval_is_the_normal_one() -> None:
    low, high = interval(10.0, 2.0)
    assert (10 - low, high - 10) == pytest.approx((3.92, 3.92), abs=1e-3)  # 1.96 errors each way


def test_weights_are_resamples() -> None:
    weights = resampling_weights(50, 400, 0)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    counts = 50 * weights
    assert np.allclose(counts, counts.round())
    # A count is binomial with variance 49/50; of its estimate from 20,000 values the error is 1 %.
    assert counts.var() == pytest.approx(0.98, rel=0.05)


# Precision, recall and other means over images


def test_the_error_of_a_share_is_the_binomial_one() -> None:
    inside = np.random.default_rng(0).random(1000) < 0.7
    share = inside.mean()
    expected = np.sqrt(share * (1 - share) / 1000)
    # 2,000 resamples know a standard deviation to 1.6 %.
    assert bootstrap_mean_error(inside, 2000, 1) == pytest.approx(expected, rel=0.07)
    assert bootstrap_mean_error(np.ones(50, bool), 100, 0) == 0


def test_the_error_of_a_mean_of_many_values_is_theirs_over_the_root_of_their_number() -> None:
    values = np.random.default_rng(0).exponential(3.0, 200)
    expected = values.std() / np.sqrt(200)
    assert bootstrap_mean_error(values, 2000, 1) == pytest.approx(expected, rel=0.07)


def test_intervals_of_precision_and_density_cover() -> None:
    """Over generated sets; the truth is that of one of 10,000 images, with the same real ones."""
    real = np.random.default_rng(0).standard_normal((200, 3))

    def generated(count: int, seed: int) -> np.ndarray:
        return 1.5 * np.random.default_rng(seed).standard_normal((count, 3))

    truth = manifold_scores(generated(10_000, 999), real, neighborhood=3)
    assert 0.5 < truth.precision < 0.9
    precision, density = [], []
    for seed in range(200):
        scores = manifold_scores(generated(150, seed), real, neighborhood=3)
        inside = scores.num_balls > 0
        precision.append((scores.precision, bootstrap_mean_error(inside, 200, seed)))
        density.append((scores.density, bootstrap_mean_error(scores.num_balls / 3, 200, seed)))
    assert coverage(precision, truth.precision) == pytest.approx(0.95, abs=0.046)
    assert coverage(density, truth.density) == pytest.approx(0.95, abs=0.046)


def test_intervals_of_recall_cover() -> None:
    """Over sets of real images, with the same generated ones."""
    generated = 0.7 * np.random.default_rng(0).standard_normal((200, 3))

    def real(count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((count, 3))

    truth = manifold_scores(generated, real(10_000, 999), neighborhood=3).recall
    assert 0.5 < truth < 0.9
    measured = []
    for seed in range(200):
        scores = manifold_scores(generated, real(150, seed), neighborhood=3)
        measured.append((scores.recall, bootstrap_mean_error(scores.recalled, 200, seed)))
    assert coverage(measured, truth) == pytest.approx(0.95, abs=0.046)


# Inception score


def test_intervals_of_an_inception_score_cover() -> None:
    """The truth is the mean over 1,000 sets of as many images: the bias is in it."""
    settings: dict[str, Any] = {"splits": 2, "split_size": None, "shuffle": False, "seed": 0}

    def logits(seed: int) -> np.ndarray:
        return 3 * np.random.default_rng(seed).standard_normal((300, 10))

    truth = np.mean([inception_score(logits(seed), **settings) for seed in range(1000, 2000)])
    measured = []
    for seed in range(200):
        probabilities = class_probabilities(logits(seed), **settings)
        error = bootstrap_is_error(probabilities, 100, seed)
        measured.append((inception_score(logits(seed), **settings), error))
    assert coverage(measured, float(truth)) == pytest.approx(0.95, abs=0.046)
    # No wider than they must be either: 200 sets know their spread to 5 %.
    assert error_over_spread(measured) == pytest.approx(1, abs=0.15)


# Kernel distance

KERNEL: dict[str, Any] = {"subsets": 4, "subset_size": 60, "degree": 3, "coef0": 1.0, "seed": 0}


def test_intervals_of_a_kernel_distance_cover() -> None:
    real = np.random.default_rng(0).standard_normal((200, 8))

    def generated(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((150, 8)) + 0.5

    truth = np.mean([kernel_distance(generated(s), real, **KERNEL) for s in range(1000, 1500)])
    measured = [
        (
            kernel_distance(generated(seed), real, **KERNEL),
            bootstrap_kid_error(generated(seed), real, **KERNEL, resamples=60),
        )
        for seed in range(200)
    ]
    # Its distribution over sets is a little skewed.
    assert coverage(measured, float(truth)) == pytest.approx(0.94, abs=0.05)
    assert error_over_spread(measured) == pytest.approx(1, abs=0.15)


def test_the_error_of_a_kernel_distance_by_its_definition() -> None:
    """Six images: sums over pairs of different ones, each as often as both were drawn."""
    x, y = np.random.default_rng(0).standard_normal((2, 6, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    values = []
    for w in resampling_weights(6, 3, 0):
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        within = sum(w[i] * w[j] * kernel(x[i], x[j]) for i, j in pairs)
        across = sum(w[i] * kernel(x[i], y[j]) for i in range(6) for j in range(6)) / 6
        values.append(within / sum(w[i] * w[j] for i, j in pairs) - 2 * across)
    settings = KERNEL | {"subsets": 1, "subset_size": 6}
    got = bootstrap_kid_error(x, y, **settings, resamples=3)
    assert got == pytest.approx(spread(values), rel=1e-12)


def test_the_error_of_a_kernel_distance_of_equal_distributions_is_too_large_rather() -> None:
    real = np.random.default_rng(0).standard_normal((2000, 8))
    settings = KERNEL | {"subsets": 1, "subset_size": 150}
    measured = []
    for seed in range(1, 101):
        generated = np.random.default_rng(seed).standard_normal((150, 8))
        error = bootstrap_kid_error(generated, real, **settings, resamples=50)
        measured.append((kernel_distance(generated, real, **settings), error))
    # 100 sets know their spread to 7 %.
    assert 0.93 < error_over_spread(measured) < 1.07 * np.sqrt(3)


def test_kernel_distance_error_refuses_what_kernel_distance_does() -> None:
    x = np.zeros((5, 3))
    with pytest.raises(ValueError, match="subsets have 6 images, allowed are 2 to 5"):
        bootstrap_kid_error(x, x, **KERNEL | {"subset_size": 6}, resamples=2)


# FID

DIM, NUM_IMAGES = 24, 800
SCALE = np.linspace(0.5, 1.5, DIM)
SHIFT = 0.1
TRUTH = float(np.sum((SCALE - 1) ** 2) + DIM * SHIFT**2)  # |mu1 - mu2|^2 + sum (s1 - s2)^2


def gaussian(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((NUM_IMAGES, DIM)) * SCALE + SHIFT


def test_fid_by_num_images_is_the_fid_of_disjoint_parts() -> None:
    zero, one = np.zeros(DIM), np.eye(DIM)
    curve = fid_by_num_images(gaussian(0), zero, one, seed=0)
    assert list(curve) == [160, 200, 266, 400, 800]
    assert [len(distances) for distances in curve.values()] == [5, 4, 3, 2, 1]
    moments = StreamingMoments(DIM)
    moments.update(gaussian(0))
    whole = frechet_distance(*moments.mean_and_covariance(), zero, one)
    assert curve[800] == pytest.approx((whole,), rel=1e-9)
    assert len(set(curve[160])) == 5
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    moments = StreamingMoments(DIM)
    moments.update(gaussian(0)[order[400:]])
    half = frechet_distance(*moments.mean_and_covariance(), zero, one)
    assert curve[400][1] == pytest.approx(half, rel=1e-9)
    with pytest.raises(ValueError, match="9 images cannot be divided into 5 parts"):
        fid_by_num_images(gaussian(0)[:9], zero, one, seed=0)


def test_fid_at_infinity_tells_bias_from_spread() -> None:
    """40 sets of 800 images of a Gaussian whose distance is known.

    FID of all images is off by its bias and spreads over the sets; the extrapolation says how
    much of its distance from the truth is which.
    """
    whole, infinity = [], []
    for seed in range(40):
        curve = fid_by_num_images(gaussian(seed), np.zeros(DIM), np.eye(DIM), seed)
        whole.append(curve[NUM_IMAGES][0])
        infinity.append(fid_infinity(curve))
    values = np.array([extrapolation.value for extrapolation in infinity])
    biases = np.array([extrapolation.bias for extrapolation in infinity])
    errors = np.array([extrapolation.standard_error for extrapolation in infinity])
    bias = np.mean(whole) - TRUTH
    assert bias > 5 * spread(whole) / np.sqrt(40)  # it is there, and not chance
    # Nearer in most sets: the bias is 2.6 spreads, and chance undoes half of it in one of ten.
    nearer = np.abs(values - TRUTH) < np.abs(np.array(whole) - TRUTH)
    assert np.mean(nearer) > 0.75
    assert np.mean(np.abs(values - TRUTH)) < 0.4 * bias
    # What is left of the bias is of order (D/N)^2, beside the chance of 40 sets.
    chance = 3 * spread(whole) / np.sqrt(40)
    assert abs(np.mean(values) - TRUTH) < 0.05 * bias + chance
    assert np.mean(biases) == pytest.approx(bias, abs=0.05 * bias + chance)
    # 40 sets know their spread to 11 %; extrapolating adds little to it.
    assert np.mean(errors) == pytest.approx(spread(whole), rel=0.33)
    assert spread(list(values)) == pytest.approx(spread(whole), rel=0.2)
    covered = [low <= TRUTH <= high for low, high in map(interval, values, errors)]
    assert np.mean(covered) >= 0.85  # errors from five parts are rough: Student's t, not normal


def test_a_line_is_extrapolated_exactly() -> None:
    curve = {n: (5.0 + 300.0 / n,) * (1000 // n) for n in (200, 250, 500, 1000)}
    value, standard_error, bias = fid_infinity(curve)
    assert value == pytest.approx(5.0)
    assert standard_error == 0
    assert bias == pytest.approx(0.3)


def test_the_standard_error_is_that_of_the_whole() -> None:
    """Two parts at 10 +- 1: a mean over both has an error of sqrt(2 / 2)."""
    assert fid_infinity({50: (9.0, 11.0), 100: (8.0,)}).standard_error == pytest.approx(1.0)
