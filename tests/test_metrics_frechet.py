"""Moments, Fréchet distance and its standard error."""

import math

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_frechet_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_fid.fid_score import (
    calculate_frechet_distance as pytorch_fid_frechet_distance,
)
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from cmrepro.metrics.frechet import (
    StreamingMoments,
    check_gaussian,
    fid_of_features,
    fid_standard_error,
    frechet_distance,
)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    streaming = StreamingMoments(features.shape[1])
    streaming.update(features)
    return streaming.mean_and_covariance()


def random_features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, non-negative features with a decaying spectrum, as a network's."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((dim, dim)) / np.sqrt(np.arange(1, dim + 1))
    return np.clip(rng.standard_normal((count, dim)) @ mixing.T + shift, 0, 6).astype(np.float32)


def random_rotation(dim: int, seed: int = 5) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


# Streaming moments


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    offset=st.floats(-1e3, 1e3),
)
def test_moments_of_batches_are_those_of_all_features(sizes: list[int], offset: float) -> None:
    rng = np.random.default_rng(sum(sizes))
    batches = [rng.standard_normal((size, 4)) + offset for size in sizes]
    accumulated = StreamingMoments(4)
    for batch in batches:
        accumulated.update(batch)
    features = np.concatenate(batches)
    mu, sigma = accumulated.mean_and_covariance()
    # 1e-12: float64 with values up to 1e3, squared.
    np.testing.assert_allclose(mu, features.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_refuse_one_image_and_values_that_are_not_finite() -> None:
    streaming = StreamingMoments(3)
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        streaming.mean_and_covariance()
    with pytest.raises(ValueError, match="image 1 are not finite"):
        streaming.update(np.array([[0.0, 0, 0], [0, np.nan, 0]]))


# Fréchet distance


def test_commuting_covariances() -> None:
    """|mu1 - mu2|^2 + sum (sqrt(a) - sqrt(b))^2 in any common eigenbasis."""
    rng = np.random.default_rng(0)
    a, b, shift = rng.uniform(0.1, 4, 20), rng.uniform(0.1, 4, 20), rng.standard_normal(20)
    basis = random_rotation(20)
    expected = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(np.zeros(20), basis * a @ basis.T, shift, basis * b @ basis.T)
    assert got == pytest.approx(expected, rel=1e-12)  # float64 rounding of 20 terms


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-12, 1e-16])
@pytest.mark.parametrize("same_basis", [True, False])
def test_variances_of_many_orders_of_magnitude(smallest: float, same_basis: bool) -> None:
    """Where the eigenvalues of S1 S2 reach down to the square of the smallest variance."""
    dim = 150  # more than a tile
    variances = np.logspace(0, np.log10(smallest), dim)
    bases = random_rotation(dim, seed=1), random_rotation(dim, seed=1 if same_basis else 2)
    sigma1, sigma2 = (basis * variances @ basis.T for basis in bases)
    # The singular values of S1^(1/2) S2^(1/2), whose rounding the root does not blow up.
    roots = [basis * np.sqrt(variances) @ basis.T for basis in bases]
    root_trace = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    expected = 2 * variances.sum() - 2 * root_trace
    got = frechet_distance(np.zeros(dim), sigma1, np.zeros(dim), sigma2)
    # What lies below D x machine epsilon is dropped; the rest is rounding of the traces.
    assert got == pytest.approx(expected, abs=1e-12 * variances.sum())


def dependent(features: np.ndarray) -> np.ndarray:
    """The last dimension the sum of the others: singular, but for rounding.

    With 300 images of seed 1 that rounding is positive, and Cholesky's method does not fail.
    """
    others = features[:, :-1].astype(np.float64)
    return np.concatenate([others, others.sum(axis=1, keepdims=True)], axis=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (random_features(34, 64, seed=34), random_features(44, 64, seed=44)),
        (random_features(34, 64, seed=34), random_features(500, 64, seed=44)),
        (random_features(500, 64, seed=34), random_features(44, 64, seed=44)),
        (dependent(random_features(300, 64, seed=1)), random_features(500, 64, seed=44)),
        (random_features(500, 64, seed=34), dependent(random_features(300, 64, seed=1))),
        (random_features(500, 64, seed=34), random_features(500, 64, seed=44) * ([1] * 63 + [0])),
    ],
    ids=["both few", "first few", "second few", "first singular", "second singular", "constant"],
)
def test_singular_covariances(first: np.ndarray, second: np.ndarray) -> None:
    """The trace of the root is the nuclear norm of X1 X2^T of the centred features."""
    x1, x2 = first.astype(np.float64), second.astype(np.float64)
    (mu1, sigma1), (mu2, sigma2) = moments(x1), moments(x2)
    nuclear = np.linalg.svd((x1 - mu1) @ (x2 - mu2).T, compute_uv=False).sum()
    root_trace = nuclear / math.sqrt((len(x1) - 1) * (len(x2) - 1))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    got = frechet_distance(mu1, sigma1, mu2, sigma2)
    # Nothing is added to the diagonal, so only rounding is left. The root of a single zero that
    # was rounded to 1e-16 of the largest eigenvalue would show as 1e-11.
    assert got == pytest.approx(expected, rel=1e-13)


def test_equals_other_tools_on_the_same_features() -> None:
    x1, x2 = random_features(600, 128, seed=3, shift=0.1), random_features(700, 128, seed=4)
    got = frechet_distance(*moments(x1), *moments(x2))
    stats = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (x1, x2)]
    peer = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert got == pytest.approx(peer, rel=1e-10)  # float64 throughout
    for distance in (cleanfid_frechet_distance, pytorch_fid_frechet_distance):  # they add 1e-6 I
        assert got == pytest.approx(distance(*moments(x1), *moments(x2)), rel=1e-6)


@pytest.mark.parametrize("count", [10, 300, 1300])
def test_a_set_against_itself(count: int) -> None:
    """0 for fewer and for more images than dimensions; the check costs less than the distance."""
    itself = moments(random_features(count, 256, seed=1))
    assert abs(frechet_distance(*itself, *itself)) < 1e-6
    check_gaussian(*itself)


# Standard error of FID

DIM, NUM_IMAGES = 24, 800
SCALE = np.linspace(0.5, 1.5, DIM)
SHIFT = 0.1


def gaussian(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((NUM_IMAGES, DIM)) * SCALE + SHIFT


def test_the_standard_error_of_fid_is_its_spread() -> None:
    """Over 40 sets of 800 images of a Gaussian, which know their spread to 11 %."""
    reference = np.zeros(DIM), np.eye(DIM)
    sets = [gaussian(seed) for seed in range(40)]
    errors = [fid_standard_error(features, *reference) for features in sets]
    spread = np.std([fid_of_features(features, *reference) for features in sets], ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=0.33)
    with pytest.raises(ValueError, match="got 9 images, intervals need at least 10"):
        fid_standard_error(sets[0][:9], *reference)
