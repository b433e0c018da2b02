"""How fast are the metrics, against other tools' functions on the same arrays in the same run?

Speed is judged as a ratio within one process, because machines differ. The bounds are about two
thirds of the ratios on one core (1.9 and 5.0).
"""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from cleanfid.fid import frechet_distance as cleanfid_frechet_distance
from pytest_benchmark.fixture import BenchmarkFixture
from torch_fidelity.metric_fid import fid_statistics_to_metric

from cmrepro.metrics.definitions import frechet_distance, kernel_distance, precision_recall
from cmrepro.metrics.protocols import load_protocol

DIM = 1280
PROTOCOL = load_protocol("embedded")


def times_as_fast(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> float:
    """Seconds of theirs over seconds of ours, taken in turns, each the fastest of its rounds."""
    fastest_s = [math.inf, math.inf]
    for _ in range(rounds):
        for index, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            fastest_s[index] = min(fastest_s[index], time.perf_counter() - start)
    return fastest_s[1] / fastest_s[0]


def random_features(count: int, seed: int) -> np.ndarray:
    """Non-negative features, mostly zero, with a decaying spectrum, as the extractor's."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, DIM + 1) ** -0.5
    mixing = np.random.default_rng(0).standard_normal((DIM, DIM)) * scale
    return np.clip(rng.standard_normal((count, DIM)) @ mixing.T, 0, 6).astype(np.float32)


@pytest.fixture(scope="module")
def generated() -> np.ndarray:
    return random_features(PROTOCOL.num_images, seed=1)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return random_features(PROTOCOL.reference_features, seed=2)


def test_frechet_distance(
    benchmark: BenchmarkFixture, generated: np.ndarray, real: np.ndarray
) -> None:
    """Against torch-fidelity's eigenvalues and clean-fid's matrix square root."""
    mu1, mu2 = (x.mean(axis=0, dtype=np.float64) for x in (generated, real))
    sigma1, sigma2 = (np.cov(x, rowvar=False) for x in (generated, real))
    statistics = {"mu": mu1, "sigma": sigma1}, {"mu": mu2, "sigma": sigma2}

    def ours() -> float:
        return frechet_distance(mu1, sigma1, mu2, sigma2)

    def torch_fidelity() -> object:
        return fid_statistics_to_metric(*statistics, verbose=False)

    def clean_fid() -> object:
        return cleanfid_frechet_distance(mu1, sigma1, mu2, sigma2)

    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    others = [("torch-fidelity", torch_fidelity, 2, 1.3), ("clean-fid", clean_fid, 1, 3)]
    for name, theirs, rounds, least in others:
        ratio = times_as_fast(ours, theirs, rounds=rounds)
        benchmark.extra_info[f"times as fast as {name}"] = ratio
        assert ratio > least


def test_kernel_distance(
    benchmark: BenchmarkFixture, generated: np.ndarray, real: np.ndarray
) -> None:
    """Torch-fidelity's own function: no ratio, only what a score under `embedded` costs."""
    settings = {
        "subsets": PROTOCOL.kid_subsets,
        "subset_size": PROTOCOL.kid_subset_size,
        "degree": PROTOCOL.kid_degree,
        "coef0": PROTOCOL.kid_coef0,
        "seed": PROTOCOL.kid_seed,
    }
    benchmark.pedantic(kernel_distance, (generated, real), settings, rounds=1)


def test_precision_recall(
    benchmark: BenchmarkFixture, generated: np.ndarray, real: np.ndarray
) -> None:
    """Torch-fidelity's own function: no ratio, only what a score under `embedded` costs."""
    settings = {"neighborhood": PROTOCOL.neighborhood}
    benchmark.pedantic(precision_recall, (generated, real), settings, rounds=1)
