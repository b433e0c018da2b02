"""The official evaluator's values on stored features (their provenance is in values.json)."""

import json
from typing import Any

import numpy as np
import pytest
from golden import arrays, path
from test_metrics_frechet import moments

from cmrepro.metrics.frechet import frechet_distance
from cmrepro.metrics.scores import inception_score, manifold_scores
from cmrepro.settings import InceptionScoreSettings

CASES = {
    "main": ("sample", "ref"),
    "self": ("ref", "ref"),
    "few": ("few_sample", "few_ref"),
    "const": ("const_sample", "const_ref"),
}


def stored(case: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path("metrics/values.json").read_text())["values"][case]
    return values


def features(*names: str) -> list[np.ndarray]:
    return [arrays("metrics/features.npz", name)[""].numpy() for name in names]


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance(case: str) -> None:
    values = stored(case)
    x, y = features(*CASES[case])
    (mu1, sigma1), (mu2, sigma2) = moments(x), moments(y)
    got = frechet_distance(mu1, sigma1, mu2, sigma2)
    rounding = 1e-12 * np.trace(sigma2)  # of a difference of traces
    # Full rank: float64 rounding. Singular: that reference takes the root of eigenvalues which
    # are zero up to rounding, 1e-8 each; ours equals the exact nuclear norm
    # (test_metrics_frechet.py).
    rel = 1e-12 if case in ("main", "self") else 1e-6
    assert got == pytest.approx(values["fid_eigenvalue_reference_float64"], rel=rel, abs=rounding)
    # The official code takes the mean in float32, which moves "main" by 1.04e-6 relative.
    official = frechet_distance(x.mean(axis=0), sigma1, y.mean(axis=0), sigma2)
    assert official == pytest.approx(values["fid"], rel=1e-6, abs=rounding)


@pytest.mark.parametrize("case", ["main", "few"])
def test_precision_and_recall(case: str) -> None:
    """Exactly those of the official code with exact distances, from float32 features."""
    values = stored(case)
    generated, real = features(*CASES[case])
    estimates = manifold_scores(generated, real, neighborhood=3)
    precision, recall = estimates["precision"].value, estimates["recall"].value
    assert (precision, recall) == (values["precision_exact"], values["recall_exact"])
    assert precision != recall


def test_inception_score() -> None:
    [probabilities] = features("probs")
    logits = np.log(probabilities.astype(np.float64))  # softmax gives the probabilities back
    values = stored("inception_score")
    for split_size in (5000, 500):
        got = inception_score(logits, InceptionScoreSettings(split_size=split_size)).value
        # The float32 probabilities sum to 1 up to 1e-7.
        assert got == pytest.approx(values[f"split_{split_size}"], rel=1e-6)
