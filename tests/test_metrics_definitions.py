import math
from typing import Any

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
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from cmrepro.metrics.definitions import (
    StreamingMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
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
    split=st.integers(0, 6),
    offset=st.floats(-1e3, 1e3),
)
def test_merged_moments_are_those_of_all_features(
    sizes: list[int], split: int, offset: float
) -> None:
    rng = np.random.default_rng(sum(sizes))
    batches = [rng.standard_normal((size, 4)) + offset for size in sizes]
    first, second = StreamingMoments(4), StreamingMoments(4)
    for index, batch in enumerate(batches):
        (first if index < split else second).update(batch)
    first.merge(second)
    features = np.concatenate(batches)
    mu, sigma = first.mean_and_covariance()
    assert first.num_images == len(features)
    # 1e-12: float64 with values up to 1e3, squared.
    np.testing.assert_allclose(mu, features.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(features, rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_of_float32_features_are_float64_and_blocks_do_not_show() -> None:
    features = random_features(9000, 8, seed=0, shift=100.0)  # more than two blocks
    mu, sigma = moments(features)
    expected = features.astype(np.float64)
    # 1e-13: summation order in float64. A float32 sum would be off by 1e-7.
    np.testing.assert_allclose(mu, expected.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.cov(expected, rowvar=False), rtol=1e-10, atol=1e-13)


def test_moments_refuse_what_does_not_belong() -> None:
    streaming = StreamingMoments(3)
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        streaming.mean_and_covariance()
    with pytest.raises(ValueError, match="have 2 dimensions, must have 3"):
        streaming.update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="features of image 1 are not finite"):
        streaming.update(np.array([[0.0, 0, 0], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match=r"int64 of shape \(2, 3\), must be float"):
        streaming.update(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="of 2 dimensions cannot join moments of 3"):
        streaming.merge(StreamingMoments(2))


# Fréchet distance


def test_commuting_covariances() -> None:
    """|mu1 - mu2|^2 + sum (sqrt(a) - sqrt(b))^2 in any common eigenbasis."""
    rng = np.random.default_rng(0)
    a, b, shift = rng.uniform(0.1, 4, 20), rng.uniform(0.1, 4, 20), rng.standard_normal(20)
    basis = random_rotation(20)
    expected = shift @ shift + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(np.zeros(20), basis * a @ basis.T, shift, basis * b @ basis.T)
    assert got == pytest.approx(expected, rel=1e-12)  # float64 rounding of 20 terms


def test_rank_one_covariances() -> None:
    """S1 = a a^T and S2 = b b^T: the trace of the root is |a.b|."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 50))
    got = frechet_distance(np.zeros(50), np.outer(a, a), np.zeros(50), np.outer(b, b))
    assert got == pytest.approx(a @ a + b @ b - 2 * abs(a @ b), rel=1e-12)  # float64 rounding


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


def test_high_precision() -> None:
    """Against eigenvalues of S1 S2 in 60 digits, variances over eight orders of magnitude."""
    mpmath = pytest.importorskip("mpmath")
    dim = 7
    variances = np.logspace(0, -8, dim)
    sigma1, sigma2 = (
        basis * variances @ basis.T for basis in (random_rotation(dim, 1), random_rotation(dim, 2))
    )
    sigma1, sigma2 = (sigma + sigma.T for sigma in (sigma1, sigma2))
    with mpmath.workdps(60):
        product = mpmath.matrix(sigma1.tolist()) * mpmath.matrix(sigma2.tolist())
        values = mpmath.eig(product, left=False, right=False)
        root_trace = float(mpmath.fsum(mpmath.re(mpmath.sqrt(value)) for value in values))
    expected = np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    got = frechet_distance(np.zeros(dim), sigma1, np.zeros(dim), sigma2)
    assert got == pytest.approx(expected, abs=1e-13)  # float64 rounding of traces of 4


def test_zero_covariances() -> None:
    zero, one = np.zeros((3, 3)), np.eye(3)
    assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3
    assert frechet_distance(np.zeros(3), zero, np.zeros(3), one) == 3


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


@pytest.mark.parametrize("count", [40, 500])
def test_identical_statistics_have_no_distance(count: int) -> None:
    mu, sigma = moments(random_features(count, 64, seed=2))
    # Rounding of a difference of traces.
    assert abs(frechet_distance(mu, sigma, mu, sigma)) < 1e-12 * np.trace(sigma)


def test_equals_other_tools_on_the_same_features() -> None:
    x1, x2 = random_features(600, 128, seed=3, shift=0.1), random_features(700, 128, seed=4)
    got = frechet_distance(*moments(x1), *moments(x2))
    # As torch-fidelity is used: float32 features, whose mean it takes in float32.
    stats = [fid_features_to_statistics(torch.from_numpy(x)) for x in (x1, x2)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert got == pytest.approx(theirs, rel=1e-6)
    # In float64 throughout only rounding is left.
    stats = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (x1, x2)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert got == pytest.approx(theirs, rel=1e-10)
    assert got == pytest.approx(cleanfid_frechet_distance(*moments(x1), *moments(x2)), rel=1e-6)


def test_equals_pytorch_fid() -> None:
    x1, x2 = random_features(600, 64, seed=3, shift=0.1), random_features(700, 64, seed=4)
    got = frechet_distance(*moments(x1), *moments(x2))
    assert got == pytest.approx(pytorch_fid_frechet_distance(*moments(x1), *moments(x2)), rel=1e-6)


def test_statistics_that_are_none_are_refused() -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    skewed = sigma.copy()
    skewed[0, 1] = 0.1
    far = np.eye(300)
    far[150, 290] = 0.1
    for arguments, message in [
        ((mu, np.eye(2), mu, sigma), r"first statistics: mu has shape \(3,\) and sigma \(2, 2\)"),
        ((np.zeros(300), np.eye(300), np.zeros(300), far), "second statistics: sigma differs"),
        ((mu, sigma, mu, skewed), "second statistics: sigma differs from its transpose by 0.1"),
        ((mu, sigma, mu * np.nan, sigma), "second statistics hold values that are not finite"),
        ((mu, sigma, np.zeros(2), np.eye(2)), "3 and 2 dimensions, must agree"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(*arguments)


# Inception score


def test_inception_score_of_known_distributions() -> None:
    score: dict[str, Any] = {"splits": 2, "shuffle": False, "seed": 0}
    # All images alike: the score is 1, whatever the classes.
    alike = np.tile(np.array([[0.0, 1.0, 3.0]]), (8, 1))
    assert inception_score(alike, **score) == pytest.approx(1, abs=1e-12)
    # Each of K classes with certainty and equally often in every split: the score is K.
    certain = np.tile(1e3 * np.eye(4), (4, 1))
    with np.errstate(all="ignore"):
        assert inception_score(certain, **score) == pytest.approx(4, abs=1e-12)


def test_inception_score_equals_torch_fidelity() -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((103, 20)).astype(np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits))[KEY_METRIC_ISC_MEAN]
    got = inception_score(logits, splits=10, shuffle=True, seed=2020)
    assert got == pytest.approx(theirs, rel=1e-12)  # float64 throughout
    assert got != pytest.approx(
        inception_score(logits, splits=10, shuffle=False, seed=0), rel=1e-6
    )
    with pytest.raises(ValueError, match="10 splits needs at least 10 images, got 9"):
        inception_score(logits[:9], splits=10, shuffle=True, seed=2020)


def test_classes_that_no_image_has_add_nothing() -> None:
    """A probability that underflows to 0 for all images of a part: 0 log 0 is 0."""
    logits = np.array([[0.0, 0.0, -1e4], [0.0, 0.0, -1e4]])
    got = inception_score(logits, splits=1, shuffle=False, seed=0)
    assert got == pytest.approx(1, abs=1e-15)


def test_parts_of_a_given_size_end_with_a_smaller_one() -> None:
    """Seven images in parts of three: the mean over 3, 3 and 1, each as a score of its own."""
    logits = np.random.default_rng(1).standard_normal((7, 5))
    whole: dict[str, Any] = {"splits": 1, "shuffle": False, "seed": 0}
    parts = [inception_score(logits[i : i + 3], **whole) for i in (0, 3, 6)]
    assert len(set(parts)) == 3
    got = inception_score(logits, split_size=3, shuffle=False, seed=0)
    assert got == pytest.approx(np.mean(parts), rel=1e-14)
    for wrong in ({}, {"splits": 1, "split_size": 3}):
        with pytest.raises(ValueError, match="exactly one must be given"):
            inception_score(logits, **wrong, shuffle=False, seed=0)


# Kernel distance

KID: dict[str, Any] = {"degree": 3, "coef0": 1.0, "seed": 2020}


def test_kernel_distance_is_the_unbiased_mmd() -> None:
    """One subset of all images, against the definition written as sums over pairs."""
    x, y = np.random.default_rng(0).standard_normal((2, 7, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (7 * 6)
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    got = kernel_distance(x, y, subsets=1, subset_size=7, **KID)
    assert got == pytest.approx(expected, rel=1e-12)  # float64 rounding


def test_kernel_distance_equals_torch_fidelity() -> None:
    x, y = random_features(150, 32, seed=5, shift=0.2), random_features(200, 32, seed=6)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subset_size=100, verbose=False
    )[KEY_METRIC_KID_MEAN]
    got = kernel_distance(x, y, subsets=100, subset_size=100, **KID)
    assert got == pytest.approx(theirs, rel=1e-6)
    with pytest.raises(ValueError, match="subsets have 151 images, allowed are 2 to 150"):
        kernel_distance(x, y, subsets=1, subset_size=151, **KID)


def test_feature_sets_that_do_not_belong_together_are_refused() -> None:
    x = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="float32 with 3 dimensions, real ones float32 with 2"):
        kernel_distance(x, np.zeros((5, 2), np.float32), subsets=1, subset_size=2, **KID)
    with pytest.raises(ValueError, match="real ones float64"):
        kernel_distance(x, x.astype(np.float64), subsets=1, subset_size=2, **KID)
    with pytest.raises(ValueError, match="features are float16 of shape"):
        kernel_distance(x.astype(np.float16), x, subsets=1, subset_size=2, **KID)
