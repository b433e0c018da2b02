import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_frechet_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cmrepro.metrics import definitions
from cmrepro.metrics.definitions import (
    StreamingMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "golden" / "metrics"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="../shared is absent")


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


def test_zero_covariances() -> None:
    zero, one = np.zeros((3, 3)), np.eye(3)
    assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3
    assert frechet_distance(np.zeros(3), zero, np.zeros(3), one) == 3


def test_fewer_images_than_dimensions() -> None:
    """The trace of the root is the nuclear norm of X1 X2^T of the centred features."""
    x1, x2 = (random_features(n, 64, seed=n).astype(np.float64) for n in (34, 44))
    (mu1, sigma1), (mu2, sigma2) = moments(x1), moments(x2)
    nuclear = np.linalg.svd((x1 - mu1) @ (x2 - mu2).T, compute_uv=False).sum()
    root_trace = nuclear / math.sqrt(33 * 43)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    got = frechet_distance(mu1, sigma1, mu2, sigma2)
    # Nothing is added to the diagonal, so only rounding is left: 1e-9.
    assert got == pytest.approx(expected, rel=1e-9)


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


def test_statistics_that_are_none_are_refused() -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    skewed = sigma.copy()
    skewed[0, 1] = 0.1
    for arguments, message in [
        ((mu, np.eye(2), mu, sigma), r"first statistics: mu has shape \(3,\) and sigma \(2, 2\)"),
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
    assert got == pytest.approx(theirs, rel=1e-6)
    assert got != pytest.approx(
        inception_score(logits, splits=10, shuffle=False, seed=0), rel=1e-6
    )
    with pytest.raises(ValueError, match="10 splits needs at least 10 images, got 9"):
        inception_score(logits[:9], splits=10, shuffle=True, seed=2020)


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


# Precision and recall


def test_precision_is_the_share_of_generated_images_inside_the_real_manifold() -> None:
    """Real images at 0, 1, ..., 9 (balls of radius 1 or 2); generated ones at 5.0 to 5.3 and 100.

    Four of the five generated images lie among the real ones, so precision is 4/5. Their balls
    (k = 1) reach 0.1 each, except that of 100, which reaches back to 5.3: it holds 6, 7, 8 and 9,
    and the first ball holds 5; recall is 5/10. Swapping the arguments swaps the two numbers.
    """
    real = np.arange(10.0)[:, None]
    generated = np.array([5.0, 5.1, 5.2, 5.3, 100.0])[:, None]
    got = precision_recall(generated, real, neighborhood=1)
    assert got == pytest.approx((0.8, 0.5))  # torch-fidelity's float32 shares
    assert precision_recall(real, generated, neighborhood=1) == pytest.approx((0.5, 0.8))


def test_mode_collapse_is_precise_and_poor_in_recall() -> None:
    real = random_features(300, 8, seed=7)
    collapsed = real[:1] + 1e-3 * np.random.default_rng(0).standard_normal((50, 8))
    got = precision_recall(collapsed.astype(np.float32), real, neighborhood=3)
    assert got.precision == 1.0
    assert got.recall <= 0.01


def test_precision_and_recall_equal_torch_fidelity() -> None:
    x, y = random_features(300, 32, seed=8, shift=0.2), random_features(400, 32, seed=9)
    theirs = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False)
    got = precision_recall(x, y, neighborhood=3)
    assert 0 < got.precision < 1 and 0 < got.recall < 1 and got.precision != got.recall
    assert (got.precision, got.recall) == (theirs["precision"], theirs["recall"])  # exactly


def test_blocks_do_not_change_precision_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shares whether distances are held at once or in blocks of 100."""
    # float64, so that no distance is rounded across a radius.
    x, y = (random_features(n, 16, seed=n, shift=0.2).astype(np.float64) for n in (250, 320))
    at_once = precision_recall(x, y, neighborhood=3)
    monkeypatch.setattr(definitions, "PAIRS_AT_ONCE", 100)
    assert precision_recall(x, y, neighborhood=3) == at_once
    assert 0 < at_once.precision < 1 and 0 < at_once.recall < 1


def test_feature_sets_that_do_not_belong_together_are_refused() -> None:
    x = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="float32 with 3 dimensions, real ones float32 with 2"):
        precision_recall(x, np.zeros((5, 2), np.float32), neighborhood=3)
    with pytest.raises(ValueError, match="real ones float64"):
        kernel_distance(x, x.astype(np.float64), subsets=1, subset_size=2, **KID)
    with pytest.raises(ValueError, match="neighborhood is 5, allowed are 1 to 4"):
        precision_recall(x, x, neighborhood=5)


# The official evaluator's values (their provenance is in values.json)


@needs_golden
@pytest.mark.parametrize(
    ("case", "generated", "real"),
    [
        ("main", "sample", "ref"),
        ("self", "ref", "ref"),
        ("few", "few_sample", "few_ref"),
        ("const", "const_sample", "const_ref"),
    ],
)
def test_official_evaluator(case: str, generated: str, real: str) -> None:
    values: dict[str, Any] = json.loads((GOLDEN / "values.json").read_text())["values"][case]
    with np.load(GOLDEN / "features.npz", allow_pickle=False) as file:
        x, y = file[generated], file[real]
    (mu1, sigma1), (mu2, sigma2) = moments(x), moments(y)
    got = frechet_distance(mu1, sigma1, mu2, sigma2)
    rounding = 1e-12 * np.trace(sigma2)  # of a difference of traces
    # Full rank: float64 rounding. Singular: that reference takes the root of eigenvalues which
    # are zero up to rounding, 1e-8 each; ours equals the exact nuclear norm (see above).
    rel = 1e-12 if case in ("main", "self") else 1e-6
    assert got == pytest.approx(values["fid_eigenvalue_reference_float64"], rel=rel, abs=rounding)
    # The official code takes the mean in float32, which moves "main" by 1.04e-6 relative.
    official = frechet_distance(x.mean(axis=0), sigma1, y.mean(axis=0), sigma2)
    assert official == pytest.approx(values["fid"], rel=1e-6, abs=rounding)
    if "precision_exact" in values:
        shares = precision_recall(x.astype(np.float64), y.astype(np.float64), neighborhood=3)
        # Exact distances give the same counts; 1e-7 is the float32 of torch-fidelity's mean.
        assert shares.precision == pytest.approx(values["precision_exact"], abs=1e-7)
        assert shares.recall == pytest.approx(values["recall_exact"], abs=1e-7)


@needs_golden
def test_official_inception_score() -> None:
    values = json.loads((GOLDEN / "values.json").read_text())["values"]["inception_score"]
    with np.load(GOLDEN / "features.npz", allow_pickle=False) as file:
        logits = np.log(file["probs"].astype(np.float64))  # softmax gives the probabilities back
    for key, splits in (("split_5000", 1), ("split_500", 3)):
        got = inception_score(logits, splits=splits, shuffle=False, seed=0)
        assert got == pytest.approx(
            values[key], rel=1e-6
        )  # float32 probabilities sum to 1 +- 1e-7
