"""Scores of a sample set: values, counts, warnings, sharing between protocols and processes."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from several import in_processes
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cmrepro.data import ImageDataset
from cmrepro.files import array_sha256
from cmrepro.metrics import score as module
from cmrepro.metrics.extractors import Features, extract, load_extractor
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import ReferenceMetadata, ReferenceStatistics, load_reference
from cmrepro.metrics.score import Scores, Task, num_scored, score
from cmrepro.settings import Protocol

SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"
DIM, LOGITS, SPATIAL = 12, 7, 5
EXTRACTOR = load_protocol("embedded").extractor.replace(
    name="numbers",
    feature_dim=DIM,
    num_logits=LOGITS,
    spatial_dim=SPATIAL,
)
PROTOCOL = load_protocol("embedded").replace(
    name="tiny",
    extractor=EXTRACTOR,
    num_images=60,
    kernel={"num_subsets": 5, "subset_size": 30, "degree": 3, "coef0": 1.0, "seed": 2020},
    stored_features={"num_images": 80, "seed": 0},
)


def random_features(count: int, seed: int, scale: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)

    def normal(dim: int) -> np.ndarray:
        return (scale * rng.standard_normal((count, dim))).astype(np.float32)

    return Features(normal(DIM), normal(LOGITS), normal(SPATIAL))


REAL = random_features(80, seed=0)


def reference_of(real: Features, protocol: Protocol = PROTOCOL) -> ReferenceStatistics:
    """A reference whose stored features are all there are."""
    assert real.spatial is not None
    metadata = ReferenceMetadata(
        dataset="synthetic",
        split="all",
        num_images=len(real.features),
        protocol=protocol.name,
        protocol_version=protocol.version,
        extractor=EXTRACTOR.name,
        image_size=EXTRACTOR.image_size,
        resize=EXTRACTOR.resize,
    )
    mu, sigma = moments(real.features)
    return ReferenceStatistics(mu, sigma, real.features, metadata, *moments(real.spatial))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = features.astype(np.float64)
    return exact.mean(axis=0), np.cov(exact, rowvar=False)


class Numbered:
    """Images that say in their pixels which row of `features` is theirs; counts passes."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.num_images = len(features.features)
        self.read: list[int] = []

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        numbers = np.arange(self.num_images)[start:stop]
        for first in range(0, len(numbers), batch_size):
            chosen = numbers[first : first + batch_size]
            self.read += chosen.tolist()
            images = np.zeros((len(chosen), 2, 2, 3), np.uint8)
            images[:, 0, 0, :2] = np.stack(np.divmod(chosen, 256), axis=1)
            yield images

    def extract(self, batch: np.ndarray, extractor: Any) -> Features:
        high, low = batch[:, 0, 0, :2].astype(int).T
        return Features(*(part[256 * high + low] for part in self.features if part is not None))


def score_features(
    features: Features, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[Scores]:
    images = Numbered(features)
    monkeypatch.setattr(module, "load_extractor", lambda settings, device: settings.name)
    monkeypatch.setattr(module, "extract", images.extract)
    monkeypatch.setattr(module, "BATCH_SIZE", 16)
    found = score(images, tasks, **options)
    counts = [task.num_images or task.protocol.num_images for task in tasks]
    assert images.read == list(range(max(counts)))  # one pass, and no image too many
    return found


def test_values_are_those_of_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = random_features(60, seed=1, scale=0.9)
    [got] = score_features(generated, [Task(PROTOCOL, reference_of(REAL))], monkeypatch)
    x, y = torch.from_numpy(generated.features), torch.from_numpy(REAL.features)
    stats = [
        dict(zip(("mu", "sigma"), moments(f), strict=True))
        for f in (generated.features, REAL.features)
    ]
    shares = prc_features_to_metric(x, y, verbose=False)
    kid = kid_features_to_metric(x, y, kid_subsets=5, kid_subset_size=30, verbose=False)
    expected = {
        "fid": fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
        "is": isc_features_to_metric(torch.from_numpy(generated.logits))["inception_score_mean"],
        "kid": kid["kernel_inception_distance_mean"],
    }
    for name, value in expected.items():
        assert got.values[name] == pytest.approx(value, rel=1e-6)
    assert got.values["precision"] == pytest.approx(shares["precision"], abs=1e-7)  # float32 there
    assert got.values["recall"] == pytest.approx(shares["recall"], abs=1e-7)
    assert list(got.values) == list(PROTOCOL.metrics)
    assert got.num_images == 60
    assert got.warnings == []
    assert got.uncertainty is None
    assert got.features_sha256 == array_sha256(generated.features)


def test_uncertainty_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = random_features(60, seed=1, scale=0.9)
    task = Task(PROTOCOL, reference_of(REAL))
    [plain] = score_features(generated, [task], monkeypatch)
    [got] = score_features(generated, [task], monkeypatch, intervals=True)
    assert got.values == plain.values
    assert got.uncertainty is not None
    intervals = got.uncertainty.intervals
    assert intervals.keys() == set(PROTOCOL.metrics) - {"fid"}
    for metric, (low, high) in intervals.items():
        assert (low + high) / 2 == pytest.approx(got.values[metric])
        assert low < high
    assert got.uncertainty.fid_by_num_images[60] == (pytest.approx(got.values["fid"]),)
    assert got.uncertainty.fid_infinity is not None
    assert got.uncertainty.fid_infinity.value < got.values["fid"]  # the bias of few images


def test_precision_is_about_the_generated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images near the mean lie inside the real manifold but do not cover it."""
    narrow = random_features(60, seed=2, scale=0.2)
    [got] = score_features(narrow, [Task(PROTOCOL, reference_of(REAL))], monkeypatch)
    assert got.values["precision"] > 0.9
    assert got.values["recall"] < 0.1


def test_spatial_features_are_scored_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = PROTOCOL.replace(metrics=("fid", "sfid"))
    generated = random_features(60, seed=3)
    [got] = score_features(generated, [Task(protocol, reference_of(REAL))], monkeypatch)
    for metric, ours, theirs in [
        ("fid", generated.features, REAL.features),
        ("sfid", generated.spatial, REAL.spatial),
    ]:
        assert ours is not None
        assert theirs is not None
        stats = [dict(zip(("mu", "sigma"), moments(f), strict=True)) for f in (ours, theirs)]
        expected = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
        assert got.values[metric] == pytest.approx(expected, rel=1e-6)


def test_protocols_share_one_pass_and_count_their_own_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generated = random_features(75, seed=3)
    fewer = PROTOCOL.replace(
        num_images=33, inception_score={"num_splits": 3, "shuffle": True, "seed": 2020}
    )
    parts = PROTOCOL.replace(metrics=("is",), inception_score={"split_size": 20})
    reference = reference_of(REAL)
    tasks = [Task(PROTOCOL, reference), Task(fewer, reference), Task(parts, reference, 75)]
    together = score_features(generated, tasks, monkeypatch)
    alone = [score_features(generated, [task], monkeypatch)[0] for task in tasks]
    for one, other in zip(together, alone, strict=True):
        assert one == other
    assert [scores.num_images for scores in together] == [60, 33, 75]


def test_logits_may_come_from_another_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EXTRACTOR.replace(name="other")
    protocol = PROTOCOL.replace(inception_score=PROTOCOL.inception_score.replace(extractor=other))
    generated, others = random_features(60, seed=4), random_features(60, seed=5)
    images = Numbered(generated)
    monkeypatch.setattr(module, "load_extractor", lambda settings, device: settings.name)

    def extract_by_name(batch: np.ndarray, extractor: str) -> Features:
        source = images if extractor == "numbers" else Numbered(others)
        return source.extract(batch, extractor)

    monkeypatch.setattr(module, "extract", extract_by_name)
    [got] = score(images, [Task(protocol, reference_of(REAL))])
    assert others.logits is not None
    expected = isc_features_to_metric(torch.from_numpy(others.logits))["inception_score_mean"]
    assert got.values["is"] == pytest.approx(expected, rel=1e-6)
    assert got.features_sha256 == array_sha256(generated.features)


def test_exactly_the_first_images_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = random_features(75, seed=3)
    task = Task(PROTOCOL, reference_of(REAL))
    first = Features(*(part[:60] for part in generated if part is not None))
    [by_default] = score_features(generated, [task], monkeypatch)
    [of_first] = score_features(first, [task], monkeypatch)
    assert by_default == of_first
    # Anything behind them may be nonsense.
    generated.features[60:] = np.nan
    assert score_features(generated, [task], monkeypatch) == [of_first]
    generated.features[59] = np.inf
    with pytest.raises(ValueError, match=r"features of image \d+ are not finite"):
        score_features(generated, [task], monkeypatch)


def test_other_numbers_of_images_must_be_asked_for_and_are_warned_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generated, reference = random_features(59, seed=4), reference_of(REAL)

    def scores_of(num_images: int | None) -> Scores:
        [got] = score_features(generated, [Task(PROTOCOL, reference, num_images)], monkeypatch)
        return got

    with pytest.raises(ValueError, match="59 images, protocol 'tiny' asks for 60"):
        scores_of(None)
    with pytest.raises(ValueError, match="59 images, --num-images is 70"):
        scores_of(70)
    with pytest.raises(ValueError, match="--num-images is 9; allowed are 10 to 59"):
        scores_of(9)
    with pytest.raises(
        ValueError, match="got 6 images, protocol 'tiny' needs at least 10 and ask"
    ):
        num_scored(6, PROTOCOL)
    assert scores_of(40).warnings == [
        "40 images where protocol tiny has 60: "
        "FID, IS, precision and recall depend on the number of images"
    ]
    assert scores_of(12).warnings[1:] == [
        "12 images for 12 dimensions: the covariance is singular and the FID biased",
        "KID from subsets of 12 images where protocol tiny has 30",
    ]
    assert not any("singular" in warning for warning in scores_of(13).warnings)


def test_other_images_and_references_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(load_protocol("embedded"), load_reference(load_protocol("embedded")), 12)
    floats = ImageDataset("x", np.zeros((12, 4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images are float64"):
        score(floats, [task])
    later = PROTOCOL.replace(version=PROTOCOL.version + 1)
    with pytest.raises(ValueError, match="protocol version"):
        score_features(random_features(60, seed=5), [Task(later, reference_of(REAL))], monkeypatch)
    reference = reference_of(REAL)
    reference.features = None
    with pytest.raises(ValueError, match="holds no features for kid, precision"):
        score_features(random_features(60, seed=5), [Task(PROTOCOL, reference)], monkeypatch)


def _scores_of_two_tasks() -> list[Scores]:
    with pytest.MonkeyPatch.context() as patch:
        images = Numbered(random_features(60, seed=1))
        patch.setattr(module, "load_extractor", lambda settings, device: settings.name)
        patch.setattr(module, "extract", images.extract)
        patch.setattr(module, "BATCH_SIZE", 16)
        protocol = PROTOCOL.replace(metrics=(*PROTOCOL.metrics, "sfid"))
        tasks = [Task(protocol, reference_of(REAL)), Task(PROTOCOL, reference_of(REAL), 25)]
        return score(images, tasks)


def test_processes_share_the_images_and_bring_their_parts_together() -> None:
    """Two processes give what one gives: features bit for bit, sums up to their order."""
    first, second = in_processes(2, _scores_of_two_tasks)
    assert second == []
    for one, two in zip(_scores_of_two_tasks(), first, strict=True):
        # The order of adding two parts of a mean moves its last digits.
        assert two.values == pytest.approx(one.values, rel=1e-9)
        assert dataclasses.replace(two, values=one.values) == one


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_real_images_score_better_than_noise() -> None:
    """The whole way, from pixels to scores, with the bundled reference."""
    protocol = load_protocol("embedded")
    task = Task(protocol, load_reference(protocol), 100)
    with np.load(SHARED / "data" / "cifar10-lossless-subset.npz", allow_pickle=False) as file:
        real = file["test_images"][:100]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    scores = [score(ImageDataset("x", images), [task])[0] for images in (real, noise)]
    good, bad = (one.values for one in scores)
    assert good["fid"] < 0.7 * bad["fid"]  # 100 images leave most of their variance out of both
    assert good["kid"] < bad["kid"] / 10  # unbiased at any number of images
    assert good["is"] > bad["is"]
    assert good["recall"] > bad["recall"]
    assert good["coverage"] > bad["coverage"]
    features = extract(real, load_extractor(protocol.extractor)).features
    assert scores[0].features_sha256 == array_sha256(features)
    assert scores[0].images_sha256 == array_sha256(real)
