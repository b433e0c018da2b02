"""Scores of a sample set: values, counts, warnings, sharing between protocols and processes."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from several import in_processes
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cmrepro.files import items_sha256
from cmrepro.metrics import accumulate
from cmrepro.metrics.evaluate import Scores, Task, num_scored, score
from cmrepro.metrics.extractors import Features
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.metrics.references import build_reference
from cmrepro.settings import KernelSettings, Protocol, StoredFeatures

DIM, LOGITS, SPATIAL = 12, 7, 5
EMBEDDED = load_protocol("embedded")
EXTRACTOR = EMBEDDED.extractor.replace(
    name="numbers", feature_dim=DIM, num_logits=LOGITS, spatial_dim=SPATIAL
)
PROTOCOL = EMBEDDED.replace(
    name="tiny",
    extractor=EXTRACTOR,
    num_images=60,
    kernel=KernelSettings(num_subsets=5, subset_size=30, degree=3, coef0=1.0, seed=2020),
    stored_features=StoredFeatures(num_images=80, seed=0),
)


def random_features(count: int, seed: int, scale: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)

    def normal(dim: int) -> np.ndarray:
        return (scale * rng.standard_normal((count, dim))).astype(np.float32)

    return Features(normal(DIM), normal(LOGITS), normal(SPATIAL))


def moments(features: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    assert features is not None
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.cov(exact, rowvar=False)


REAL = random_features(80, seed=0)
REFERENCE = ReferenceStatistics(
    *moments(REAL.features),
    REAL.features,
    spatial_mu=moments(REAL.spatial)[0],
    spatial_sigma=moments(REAL.spatial)[1],
)


class Numbered:
    """Images whose pixels give their row of `features`; lists the rows that are read."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.num_images = len(features.features)
        self.read: list[int] = []

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        numbers = np.arange(self.num_images)[start:stop]
        for first in range(0, len(numbers), batch_size):
            rows = numbers[first : first + batch_size]
            self.read += rows.tolist()
            images = np.zeros((len(rows), 2, 2, 3), np.uint8)
            images[:, 0, 0, :2] = np.stack(np.divmod(rows, 256), axis=1)
            yield images

    def extract(self, batch: np.ndarray) -> Features:
        high, low = batch[:, 0, 0, :2].astype(int).T
        return Features(*(part[256 * high + low] for part in self.features if part is not None))


def use_numbered(patch: pytest.MonkeyPatch, **sources: Features) -> Numbered:
    """The images of the first of these sets, of features by the extractor's name."""
    images = {name: Numbered(features) for name, features in sources.items()}
    patch.setattr(accumulate, "load_extractor", lambda settings, device: settings.name)
    patch.setattr(accumulate, "extract", lambda batch, name: images[name].extract(batch))
    patch.setattr(accumulate, "BATCH_SIZE", 16)
    return next(iter(images.values()))


def score_features(
    features: Features, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[Scores]:
    images = use_numbered(monkeypatch, numbers=features)
    scores = score(images, tasks, **options)
    counts = [task.num_images or task.protocol.num_images for task in tasks]
    whole = options.get("checksum_all", False)
    assert images.read == list(range(len(features.features) if whole else max(counts)))  # once
    return scores


def test_values_are_those_of_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = random_features(60, seed=1, scale=0.9)
    protocol = PROTOCOL.replace(metrics=(*PROTOCOL.metrics, "sfid"))
    [scores] = score_features(generated, [Task(protocol, REFERENCE)], monkeypatch)
    x, y = torch.from_numpy(generated.features), torch.from_numpy(REAL.features)

    def fid(*sets: np.ndarray | None) -> float:
        pairs = [dict(zip(("mu", "sigma"), moments(features), strict=True)) for features in sets]
        return fid_statistics_to_metric(*pairs, verbose=False)["frechet_inception_distance"]

    kid = kid_features_to_metric(x, y, kid_subsets=5, kid_subset_size=30, verbose=False)
    expected = {
        "fid": fid(generated.features, REAL.features),
        "sfid": fid(generated.spatial, REAL.spatial),
        "is": isc_features_to_metric(torch.from_numpy(generated.logits))["inception_score_mean"],
        "kid": kid["kernel_inception_distance_mean"],
    }
    for name, value in expected.items():
        assert scores.values[name] == pytest.approx(value, rel=1e-6)  # a matrix root there
    shares = prc_features_to_metric(x, y, verbose=False)
    for name in ("precision", "recall"):
        assert scores.values[name] == pytest.approx(shares[name], abs=1e-7)  # float32 there
    assert list(scores.values) == list(protocol.metrics)
    assert scores.num_images == 60 and scores.uncertainty is None
    assert scores.features_sha256 == hashlib.sha256(generated.features.tobytes()).hexdigest()


def test_intervals_surround_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, task = random_features(60, seed=1, scale=0.9), Task(PROTOCOL, REFERENCE)
    [plain] = score_features(generated, [task], monkeypatch)
    [scores] = score_features(generated, [task], monkeypatch, intervals=True)
    uncertainty = scores.uncertainty
    assert scores.values == plain.values and uncertainty
    assert uncertainty.intervals.keys() == set(PROTOCOL.metrics)
    for metric, (low, high) in uncertainty.intervals.items():
        assert (low + high) / 2 == pytest.approx(scores.values[metric])
        assert low < high
    # A share of 60 images has the binomial error.
    share, (low, high) = scores.values["precision"], uncertainty.intervals["precision"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 60), rel=1e-3)


def test_protocols_share_one_pass_and_count_their_own_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generated = random_features(75, seed=3)
    assert PROTOCOL.inception_score
    fewer = PROTOCOL.replace(
        num_images=33, inception_score=PROTOCOL.inception_score.replace(num_splits=3)
    )
    parts = PROTOCOL.replace(metrics=("is",), inception_score={"split_size": 20})
    tasks = [Task(PROTOCOL, REFERENCE), Task(fewer, REFERENCE), Task(parts, REFERENCE, 75)]
    together = score_features(generated, tasks, monkeypatch)
    assert together == [score_features(generated, [task], monkeypatch)[0] for task in tasks]
    assert [scores.num_images for scores in together] == [60, 33, 75]


def test_logits_may_come_from_another_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROTOCOL.inception_score
    settings = PROTOCOL.inception_score.replace(extractor=EXTRACTOR.replace(name="other"))
    sources = {"numbers": random_features(60, seed=4), "other": random_features(60, seed=5)}
    images = use_numbered(monkeypatch, **sources)
    task = Task(PROTOCOL.replace(inception_score=settings), REFERENCE)
    [scores] = score(images, [task])
    logits = torch.from_numpy(sources["other"].logits)
    expected = isc_features_to_metric(logits)["inception_score_mean"]
    assert scores.values["is"] == pytest.approx(expected, rel=1e-6)
    assert (
        scores.features_sha256 == hashlib.sha256(sources["numbers"].features.tobytes()).hexdigest()
    )
    task = Task(task.protocol.replace(metrics=("fid",)), REFERENCE)  # as explain does
    [fid] = score(images, [task])
    assert fid.values == {"fid": scores.values["fid"]}


def test_exactly_the_first_images_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, task = random_features(75, seed=3), Task(PROTOCOL, REFERENCE)
    first = Features(*(part[:60] for part in generated if part is not None))
    [scores] = score_features(first, [task], monkeypatch)
    generated.features[60:] = np.nan  # images behind them may be anything
    warned = ["the first 60 of 75 images are scored, not a random subset"]
    scores = replace(scores, warnings=warned + scores.warnings)
    assert score_features(generated, [task], monkeypatch) == [scores]
    [whole] = score_features(generated, [task], monkeypatch, checksum_all=True)
    assert replace(whole, set_sha256=None) == scores
    pixels = np.concatenate(list(Numbered(generated).batches(75)))
    assert whole.set_sha256 == items_sha256(pixels)
    assert whole.images_sha256 == items_sha256(pixels[:60])
    generated.features[59] = np.inf
    with pytest.raises(ValueError, match=r"features of image \d+ are not finite"):
        score_features(generated, [task], monkeypatch)


def test_other_numbers_of_images_are_requested_and_warned_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for requested, message in [
        (None, "59 images, protocol 'tiny' asks for 60"),
        (70, "59 images, num_images is 70"),
        (9, "num_images is 9; allowed are 10 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            num_scored(59, PROTOCOL, requested)
    more = PROTOCOL.replace(stored_features=StoredFeatures(num_images=90, seed=0))
    task = Task(more, REFERENCE, 12)
    [scores] = score_features(random_features(59, seed=4), [task], monkeypatch)
    _, few, singular, kid, trusted, real = scores.warnings
    assert "12 images where protocol tiny has 60" in few
    assert "12 images for 12 dimensions: the covariance is singular" in singular
    assert "subsets of 12 images where protocol tiny has 30" in kid
    assert trusted.startswith("reference unknown does not say what it was made of: its extractor")
    assert "features of 80 real images where protocol tiny has 90" in real


def _in_one_process() -> tuple[list[Scores], ReferenceStatistics]:
    with pytest.MonkeyPatch.context() as patch:
        images = use_numbered(patch, numbers=random_features(60, seed=1))
        protocol: Protocol = PROTOCOL.replace(metrics=(*PROTOCOL.metrics, "sfid"))
        tasks = [Task(protocol, REFERENCE), Task(PROTOCOL, REFERENCE, 25)]
        scores = score(images, tasks, intervals=True)
        stored = protocol.replace(stored_features={"num_images": 50, "seed": 0})
        return scores, build_reference(images, stored, dataset="x", split="all")


def test_several_processes_give_what_one_gives() -> None:
    """Bit for bit: rank 0 adds up the features of all in the order of the images."""
    (scores, built), (nothing, same) = in_processes(2, _in_one_process)
    expected_scores, expected = _in_one_process()
    assert (scores, nothing) == (expected_scores, [])
    for reference in (built, same):
        assert reference.metadata == expected.metadata
        for name in ("mu", "sigma", "features", "spatial_sigma"):
            np.testing.assert_array_equal(getattr(reference, name), getattr(expected, name))
