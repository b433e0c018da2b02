"""Speed of the metrics against torch-fidelity's functions on the same arrays.

Features of 2,048 dimensions, as Inception's, at full size. There on one core our Fréchet distance
is one symmetric eigenproblem where theirs is a general one. The inception score is the same sums,
KID their own function of a subset; both give a standard error besides. Precision and recall are
exact, in float64, where theirs are in float32, and come with density and coverage.
"""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance as cleanfid_frechet_distance
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from cmrepro.metrics import frechet, scores
from cmrepro.settings import InceptionScoreSettings, KernelSettings

full = pytest.mark.slow_bench


def feature_sets(count, dim):
    """Generated and real features: non-negative, correlated, with a decaying spectrum."""
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))
    mixing *= torch.arange(1, dim + 1) ** -0.5
    return [
        (scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))
        .matmul(mixing.T)
        .clamp_(0, 6)
        .numpy()
        for seed, scale in ((1, 0.97), (2, 1.0))
    ]


def repeated(work):
    """Ten times the work: times of some milliseconds are too short to compare."""

    def run():
        for _ in range(10):
            work()

    return run


@pytest.mark.parametrize(
    ("count", "dim"), [(1000, 256), pytest.param(10_000, 2048, marks=full)], ids=["small", "full"]
)
def test_frechet_distance(benchmark, gate, count, dim):
    sets = feature_sets(count, dim)
    statistics = [(x.mean(axis=0, dtype=np.float64), np.cov(x, rowvar=False)) for x in sets]
    first, second = ({"mu": mu, "sigma": sigma} for mu, sigma in statistics)

    def ours():
        return frechet.frechet_distance(*statistics[0], *statistics[1])

    def torch_fidelity():
        return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]

    distance = benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    assert distance == pytest.approx(torch_fidelity(), rel=1e-6)
    assert distance == pytest.approx(
        cleanfid_frechet_distance(*statistics[0], *statistics[1]), rel=1e-6
    )
    pairs = 25 if dim < 2048 else 1  # theirs takes a quarter of a minute
    gate.ratio(f"FID of {dim} over torch-fidelity", ours, torch_fidelity, at_most=0.5, pairs=pairs)
    gate.score(f"FID of random features of {dim}", distance)


@pytest.mark.parametrize(
    ("count", "dim"), [(800, 256), pytest.param(10_000, 2048, marks=full)], ids=["small", "full"]
)
def test_manifolds(benchmark, gate, count, dim):
    """All four values, against torch-fidelity's precision and recall."""
    generated, real = feature_sets(count, dim)
    tensors = torch.from_numpy(generated), torch.from_numpy(real)

    def ours():
        return scores.manifold_scores(generated, real, neighborhood=3)

    def torch_fidelity():
        return prc_features_to_metric(*tensors, verbose=False)

    estimates = benchmark.pedantic(ours, rounds=1)
    peer = torch_fidelity()
    assert np.float32(estimates["precision"].value) == peer[KEY_METRIC_PRECISION]
    assert np.float32(estimates["recall"].value) == peer[KEY_METRIC_RECALL]
    at_most, pairs = (2.5, 25) if dim < 2048 else (2.5, 1)
    gate.ratio(
        f"manifolds of {dim} over torch-fidelity",
        ours,
        torch_fidelity,
        at_most=at_most,
        pairs=pairs,
    )
    for metric, estimate in estimates.items():
        gate.score(f"{metric} of random features of {dim}", estimate.value)


def test_inception_score(benchmark, gate):
    """Of few images: fresh pages for large arrays cost more than the sums, and not evenly."""
    logits = 3 * np.random.default_rng(0).standard_normal((300, 1008), np.float32)

    def ours():
        settings = InceptionScoreSettings(num_splits=10, shuffle=True, seed=2020)
        return scores.inception_score(logits, settings).value

    def torch_fidelity():
        return isc_features_to_metric(torch.from_numpy(logits))[KEY_METRIC_ISC_MEAN]

    value = benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    assert value == pytest.approx(torch_fidelity(), rel=1e-6)
    # No baseline: on one machine 1.0 to 1.16, from run to run.
    gate.bound("IS over torch-fidelity", repeated(ours), repeated(torch_fidelity), at_most=1.4)
    gate.score("IS of random logits", value)


def test_kernel_distance(benchmark, gate):
    """Their function with our checks before it."""
    generated, real = feature_sets(1000, 256)
    tensors = torch.from_numpy(generated), torch.from_numpy(real)

    def ours():
        settings = KernelSettings(num_subsets=10, subset_size=300, degree=3, coef0=1, seed=2020)
        return scores.kernel_distance(generated, real, settings).value

    def torch_fidelity():
        return kid_features_to_metric(
            *tensors, kid_subsets=10, kid_subset_size=300, verbose=False, rng_seed=2020
        )[KEY_METRIC_KID_MEAN]

    value = benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    assert value == pytest.approx(torch_fidelity(), rel=1e-6)
    gate.ratio("KID over torch-fidelity", ours, torch_fidelity, at_most=1.1)
    gate.score("KID of random features", value)
