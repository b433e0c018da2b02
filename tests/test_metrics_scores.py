"""IS, KID and the manifold metrics, and intervals against repeated experiments.

Coverage is counted over some hundred synthetic sample sets with fixed seeds; the bounds are those
of the counting, three standard deviations of a binomial, unless stated otherwise.
"""

from collections.abc import Callable

import numpy as np
import pytest
from test_metrics_frechet import random_features

from cmrepro.metrics import scores
from cmrepro.metrics.scores import (
    Estimate,
    inception_score,
    kernel_distance,
    manifold_counts,
    manifold_scores,
    mean_estimate,
    within_range,
)
from cmrepro.settings import InceptionScoreSettings, KernelSettings, Metric

# Inception score


def test_inception_score_of_known_distributions() -> None:
    halves = InceptionScoreSettings(num_splits=2)
    # All images alike: the score is 1, whatever the classes, with or without an error.
    alike = np.tile(np.array([[0.0, 1.0, 3.0]]), (8, 1))
    assert inception_score(alike, halves) == pytest.approx((1, 0), abs=1e-12)
    # Each of K classes with certainty and equally often in every split: the score is K.
    certain = np.tile(1e3 * np.eye(4), (4, 1))
    assert inception_score(certain, halves) == pytest.approx((4, 0), abs=1e-12)
    # A probability that underflows to 0 for all images of a part: 0 log 0 is 0.
    missing = np.array([[0.0, 0.0, -1e4], [0.0, 0.0, -1e4]])
    assert inception_score(missing, InceptionScoreSettings(num_splits=1)).value == 1


def test_rounding_ends_at_the_edge_of_a_range() -> None:
    for metric, value, expected in (
        ("is", 1 - 1e-15, 1), ("is", 0.99, 0.99), ("fid", -2e-3, 0), ("fid", -1.0, -1.0),
        ("recall", 1 + 1e-12, 1), ("kid", -1e-12, -1e-12), ("is", 1 + 1e-15, 1 + 1e-15),
    ):  # fmt: skip
        assert within_range(metric, value) == expected


def test_parts_of_a_given_size_end_with_a_smaller_one() -> None:
    """Seven images in parts of three: the mean over 3, 3 and 1, each as a score of its own."""
    logits = np.random.default_rng(1).standard_normal((7, 5))
    whole = InceptionScoreSettings(num_splits=1)
    parts = [inception_score(logits[i : i + 3], whole).value for i in (0, 3, 6)]
    assert len(set(parts)) == 3
    got = inception_score(logits, InceptionScoreSettings(split_size=3)).value
    assert got == pytest.approx(np.mean(parts), rel=1e-14)


# Kernel distance

KERNEL = KernelSettings(num_subsets=1, subset_size=7, degree=3, coef0=1.0, seed=2020)


def test_kernel_distance_is_the_unbiased_mmd() -> None:
    """One subset of all images, against the definition written as sums over pairs."""
    x, y = np.random.default_rng(0).standard_normal((2, 7, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (7 * 6)
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    # float64 rounding
    assert kernel_distance(x, y, KERNEL).value == pytest.approx(expected, rel=1e-12)


# Precision, recall, density, coverage


def by_definition(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """All pairs at once, each distance a sum of squared differences in float64."""

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        difference = a[:, None].astype(np.float64) - b[None]
        return np.einsum("ijd,ijd->ij", difference, difference)

    # The k-th nearest other image: an image is nearest to itself.
    radii = [np.sort(squared(x, x), axis=1)[:, k] for x in (generated, real)]
    distances = squared(generated, real)
    in_real = distances <= radii[1]
    recalled = (distances <= radii[0][:, None]).any(axis=0)
    return in_real.sum(axis=1), recalled, in_real.any(axis=0)


def values(got: dict[Metric, Estimate]) -> tuple[float, ...]:
    """Precision, recall, density, coverage."""
    return tuple(estimate.value for estimate in got.values())


def test_points_on_a_line() -> None:
    """Real images at 0, 1, ..., 9 (balls of radius 1); generated ones at 5.0 to 5.3 and 100.

    Four of the five generated images lie among the real ones: precision is 4/5. Their balls
    (k = 1) reach 0.1 each, except that of 100, which reaches back to 5.3: it holds 6, 7, 8 and 9,
    and the first ball holds 5; recall is 5/10. 5.0 lies in the balls of 4, 5 and 6, two of them
    by their borders, the next three in those of 5 and 6: density is 9/5, coverage 3/10.
    """
    real = np.arange(10.0)[:, None]
    generated = np.array([5.0, 5.1, 5.2, 5.3, 100.0])[:, None]
    got = manifold_scores(generated, real, neighborhood=1)
    assert values(got) == (0.8, 0.5, 1.8, 0.3)
    # Which of the two sets is generated matters: swapped, the numbers swap.
    assert values(manifold_scores(real, generated, neighborhood=1))[:2] == (0.5, 0.8)


def clusters(count: int, rng: np.random.Generator) -> np.ndarray:
    """Two clusters far apart: squared norms of 6e7, squared distances of 2."""
    return rng.standard_normal((count, 64)) / 8 + 1000 * rng.choice([-1, 1], (count, 1))


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Generated and real features, float32."""
    rng = np.random.default_rng(0)
    if name == "usual":
        return random_features(300, 32, 8, shift=0.2), random_features(400, 32, 9)
    if name == "clusters":
        return tuple(clusters(count, rng).astype(np.float32) for count in (200, 300))
    # Whole numbers, whose distances coincide, some images twice and thrice in both sets.
    generated, real = (rng.integers(0, 4, (count, 6)).astype(np.float32) for count in (80, 90))
    generated[:20], real[60:], real[:9] = generated[20:40], real[:30], generated[:9]
    return generated, real


@pytest.mark.parametrize("block", [2048, 70, 12])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("name", ["usual", "clusters", "ties"])
def test_neither_blocks_nor_rounding_change_the_definition(
    monkeypatch: pytest.MonkeyPatch, block: int, k: int, name: str
) -> None:
    """Image by image, not only in the mean."""
    monkeypatch.setattr(scores, "BLOCK", block)
    sets = case(name)
    got, expected = manifold_counts(*sets, k), by_definition(*sets, k)
    for part, exact in zip(got, expected, strict=True):
        np.testing.assert_array_equal(part, exact)


def test_density_and_coverage_of_equal_distributions() -> None:
    """The expectations of Naeem et al. (2020), lemmas 1 and 2: 1, and a product of k ratios."""
    k, count = 5, 3000
    generated, real = np.random.default_rng(0).standard_normal((2, count, 4))
    _, _, density, coverage = values(manifold_scores(generated, real, neighborhood=k))
    assert density == pytest.approx(1, abs=0.05)  # over seeds its standard deviation is 0.012
    missed = np.prod([(count - i) / (2 * count - i) for i in range(1, k + 1)])
    # The standard deviation of a share of 3,000 images is 0.003, and they are not independent.
    assert coverage == pytest.approx(1 - missed, abs=0.015)


# Intervals

Experiment = Callable[[int], Estimate]


def test_an_estimate_of_a_mean_has_its_standard_error_and_normal_interval() -> None:
    inside = np.arange(1000) < 700
    share = mean_estimate(inside)
    assert share == pytest.approx((0.7, np.sqrt(0.7 * 0.3 / 1000)))  # binomial
    low, high = share.interval
    # 1.96 errors each way.
    assert (0.7 - low, high - 0.7) == pytest.approx((1.96 * share.standard_error,) * 2, rel=1e-4)
    assert mean_estimate(np.ones(50, bool)) == (1, 0)


REAL, GENERATED = (np.random.default_rng(0).standard_normal((200, 3)) * s for s in (1, 0.7))


def manifold(metric: Metric, seed: int, count: int = 150) -> Estimate:
    """Precision and density over generated sets, recall over real ones; the other set is fixed."""
    z = np.random.default_rng(seed).standard_normal((count, 3))
    sets = (GENERATED, z) if metric == "recall" else (1.5 * z, REAL)
    return manifold_scores(*sets, neighborhood=3)[metric]


def score(seed: int) -> Estimate:
    logits = 3 * np.random.default_rng(seed).standard_normal((300, 10))
    return inception_score(logits, InceptionScoreSettings(num_splits=2))


def distance(seed: int) -> Estimate:
    real = np.random.default_rng(0).standard_normal((200, 8))
    generated = np.random.default_rng(seed).standard_normal((150, 8)) + 0.5
    return kernel_distance(generated, real, KERNEL.replace(num_subsets=4, subset_size=60))


def mean_of(experiment: Experiment) -> float:
    """Truth that holds the bias of a finite set."""
    return float(np.mean([experiment(seed).value for seed in range(1000, 1500)]))


@pytest.mark.parametrize(
    ("experiment", "truth"),
    [
        # One set of 10,000 images stands for all.
        (lambda seed: manifold("precision", seed), lambda: manifold("precision", 999, 10_000)[0]),
        (lambda seed: manifold("recall", seed), lambda: manifold("recall", 999, 10_000)[0]),
        (score, lambda: mean_of(score)),
        (distance, lambda: mean_of(distance)),
    ],
    ids=["precision", "recall", "is", "kid"],
)
def test_intervals_cover(experiment: Experiment, truth: Callable[[], float]) -> None:
    estimates = [experiment(seed) for seed in range(200)]
    expected = truth()
    covered = [low <= expected <= high for low, high in (e.interval for e in estimates)]
    # KID's distribution over sets is a little skewed.
    assert np.mean(covered) == pytest.approx(0.945, abs=0.05)
    values, errors = np.array(estimates).T
    # No wider than they must be either: 200 sets know their spread to 5 %.
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)
