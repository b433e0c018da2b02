"""Reference statistics: built, loaded by name, held against a protocol."""

import functools
import hashlib
import pathlib
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cmrepro.data import ImageDataset, open_images
from cmrepro.files import sha256
from cmrepro.metrics import accumulate, reference_files
from cmrepro.metrics.extractors import Features, extract, load_extractor
from cmrepro.metrics.frechet import frechet_distance
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import ReferenceStatistics, write_statistics
from cmrepro.metrics.references import (
    build_reference,
    default_reference,
    load_reference,
    registered_references,
)
from cmrepro.settings import Protocol, ReferenceMetadata, StoredFeatures

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
EMBEDDED, ADM = load_protocol("embedded"), load_protocol("adm")
PROTOCOL = EMBEDDED.replace(stored_features=StoredFeatures(num_images=5, seed=3))
# Of few dimensions, with spatial features, for the extractor below.
SMALL = ADM.replace(
    extractor=ADM.extractor.replace(name="means", feature_dim=6, spatial_dim=3),
    stored_features=StoredFeatures(num_images=4, seed=0),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
NOISE = ImageDataset("noise", IMAGES)


def means(batch: np.ndarray, extractor: Any = None) -> Features:
    """Mean and standard deviation of each channel as features, the first pixel as spatial ones."""
    pixels = batch.astype(np.float32).reshape(len(batch), -1, 3)
    features = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    return Features(features, None, pixels[:, 0])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    for module in (accumulate, reference_files):
        monkeypatch.setattr(module, "load_extractor", lambda settings, device: settings)
        monkeypatch.setattr(module, "extract", means)
    return SMALL


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "references"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def built() -> ReferenceStatistics:
    return build_reference(NOISE, PROTOCOL, dataset="noise", split="all")


def save_gaussian(path: pathlib.Path, dim: int = 2048, **more: np.ndarray) -> None:
    np.savez(path, mu=np.zeros(dim), sigma=np.eye(dim), **more)


def test_a_reference_holds_a_seeded_choice_of_features_and_its_metadata(
    built: ReferenceStatistics, tmp_path: pathlib.Path
) -> None:
    features = extract(IMAGES, load_extractor(PROTOCOL.extractor)).features
    rows = np.sort(np.random.RandomState(3).permutation(12)[:5])
    np.testing.assert_array_equal(built.features, features[rows].astype(np.float16))
    assert built.metadata == ReferenceMetadata(
        dataset="noise",
        split="all",
        num_images=12,
        images_sha256=hashlib.sha256(IMAGES.tobytes()).hexdigest(),
        features_seed=3,
        protocol="embedded",
        protocol_version=PROTOCOL.version,
        extractor="efficientnet-lite0",
        image_size=64,
        resize="bilinear",
    )
    assert (built.name, built.sha256) == ("noise-all", None)
    write_statistics(tmp_path / "saved.npz", built)
    loaded = load_reference(PROTOCOL, tmp_path / "saved.npz")
    assert loaded.metadata == built.metadata
    assert loaded.for_record().sha256 == sha256(tmp_path / "saved.npz")
    assert loaded.for_record().name == "saved"
    # The same images against themselves, of fewer than dimensions.
    assert abs(frechet_distance(built.mu, built.sigma, loaded.mu, loaded.sigma)) < 1e-6


@dataclass(frozen=True)
class Stream:
    """Images made when they are needed; another number than announced where `given` is set."""

    num_images: int
    given: int | None = None

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        end = self.given or stop or self.num_images
        for first in range(start, end, batch_size):
            shape = (min(batch_size, end - first), 8, 8, 3)
            yield np.random.default_rng(first).integers(0, 256, shape, dtype=np.uint8)


def test_a_stream_gives_the_moments_of_all_its_images(small: Protocol) -> None:
    stream = Stream(5000)  # more than are gathered between two updates of the moments
    whole = np.concatenate(list(stream.batches(64)))
    features, _, spatial = means(whole)
    assert spatial is not None
    got = build_reference(stream, small, dataset="noise", split="all")
    for mu, sigma, expected in [
        (got.mu, got.sigma, features.astype(np.float64)),
        (got.spatial_mu, got.spatial_sigma, spatial.astype(np.float64)),
    ]:
        np.testing.assert_allclose(mu, expected.mean(axis=0))
        covariance = np.cov(expected, rowvar=False)
        np.testing.assert_allclose(sigma, covariance, rtol=1e-9, atol=1e-9 * covariance.max())
    assert got.metadata.images_sha256 == hashlib.sha256(whole.tobytes()).hexdigest()
    rows = np.sort(np.random.RandomState(0).permutation(5000)[:4])
    np.testing.assert_array_equal(got.real_features(small), features[rows].astype(np.float16))


def test_memory_does_not_grow_with_the_number_of_images(small: Protocol) -> None:
    peaks = []
    for count in (15_000, 60_000):  # several rounds of 4,096 each
        tracemalloc.start()
        build_reference(Stream(count), small, dataset="noise", split="all")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Three numbers an image, for the choice of the stored features; its pixels have 192 bytes.
    assert peaks[1] - peaks[0] < 30 * 45_000


def test_too_few_images_are_refused(small: Protocol) -> None:
    few = ImageDataset("noise", IMAGES[:3])
    with pytest.raises(ValueError, match="got 3 images, protocol 'adm' stores features of 4"):
        build_reference(few, small, dataset="noise", split="all")
    with pytest.raises(ValueError, match="got 70 images of 100 announced"):
        build_reference(Stream(100, given=70), small, dataset="noise", split="all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": {"name": "inception"}}, "extractor 'efficientnet-lite0'.*'inception'"),
        ({"extractor": {"feature_dim": 2048}}, "dimension 1280, .* need 2048"),
        ({"version": 99}, f"protocol version {PROTOCOL.version}, .* need 99"),
        ({"dataset": "cifar10-train"}, "data set 'noise-all', .* need 'cifar10-train'"),
    ],
)
def test_another_protocol_is_refused(
    change: dict[str, Any], message: str, built: ReferenceStatistics
) -> None:
    if "extractor" in change:
        change = {"extractor": PROTOCOL.extractor.replace(**change["extractor"])}
    with pytest.raises(ValueError, match=message):
        built.require_protocol(PROTOCOL.replace(**change))


def test_a_file_without_metadata_is_taken_on_trust(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "theirs.npz"
    save_gaussian(path)
    reference = load_reference(load_protocol("edm"), path)
    with pytest.raises(ValueError, match=r"theirs was made with dimension 2048, .* need 1280"):
        load_reference(PROTOCOL, path)
    for name, lacking in [("torch-fidelity", "kid"), ("adm", "sfid")]:
        with pytest.raises(ValueError, match=f"theirs lacks the features for {lacking}"):
            reference.require_protocol(load_protocol(name))


def test_a_file_that_exists_wins_over_a_name(
    small: Protocol, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not over the protocol's own reference."""
    monkeypatch.chdir(tmp_path)
    name = EMBEDDED.reference
    write_statistics(pathlib.Path(name), build_reference(NOISE, small, dataset="x", split="y"))
    assert load_reference(small, name).metadata.dataset_split == "x-y"
    assert load_reference(EMBEDDED).metadata.dataset_split == name
    with pytest.raises(ValueError, match=r"(?s)^.{,300}$") as caught:
        load_reference(small, "r.npz")
    assert "no such file either" in str(caught.value)
    with pytest.raises(ValueError, match=r"cache is a folder, .*`cmrepro references build`"):
        load_reference(small, "cache")


def test_features_of_stored_images_are_extracted_once(
    small: Protocol, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pixels = tmp_path / "VIRTUAL.npz", np.tile(IMAGES, (6, 1, 1, 1))
    save_gaussian(path, 6, mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=pixels)
    reference = load_reference(small, path)
    np.testing.assert_array_equal(reference.real_features(small), means(pixels).features)
    monkeypatch.setattr(reference_files, "extract", None)  # the cache has them
    again = load_reference(small, path).real_features(small)
    np.testing.assert_array_equal(again, means(pixels).features)
    other = small.replace(extractor=small.extractor.replace(resize="bilinear"))
    with pytest.raises(TypeError, match="not callable"):
        load_reference(small, path).real_features(other)


def test_registered_files_get_their_documented_metadata(cache: pathlib.Path) -> None:
    save_gaussian(cache / "edm-cifar10-32x32.npz")  # put there by hand
    edm = load_protocol("edm")
    reference = load_reference(edm)
    assert reference.metadata == ReferenceMetadata(
        dataset="cifar10",
        split="train",
        num_images=50_000,
        extractor="inception-nvidia",
        image_size=299,
        resize="tensorflow1-bilinear",
    )
    assert reference.name == "edm-cifar10-32x32"
    with pytest.raises(ValueError, match=r"extractor 'inception-nvidia', .*'inception-clean'"):
        load_reference(load_protocol("clean-fid"), "edm-cifar10-32x32")
    save_gaussian(cache / "edm-imagenet-64x64.npz")
    with pytest.raises(ValueError, match=r"data set 'imagenet64-train', .*'cifar10-train'"):
        load_reference(load_protocol("cm-cifar10"), "edm-imagenet-64x64")
    # A file that changes after its first use is refused.
    save_gaussian(cache / "edm-cifar10-32x32.npz", arr_1=np.zeros(1))
    with pytest.raises(ValueError, match=r"has sha256 .*, expected"):
        load_reference(edm)


def test_what_nobody_publishes_says_how_to_build_it(small: Protocol, cache: pathlib.Path) -> None:
    path, protocol = cache / "cifar10-train-torch-fidelity.npz", load_protocol("torch-fidelity")
    command = "build cifar10-train --protocol torch-fidelity --dataset cifar10 --split train"
    with pytest.raises(ValueError, match=re.escape(f"{command} --out {path}`")):
        load_reference(protocol)
    few = protocol.replace(
        extractor=protocol.extractor.replace(feature_dim=6),
        stored_features=StoredFeatures(num_images=5, seed=0),
    )
    write_statistics(path, build_reference(NOISE, few, dataset="cifar10", split="train"))
    with pytest.raises(ValueError, match=r"has num_images 12, .*torch-fidelity has 50000; delete"):
        load_reference(few)


def test_the_bundled_reference_serves_its_protocol() -> None:
    reference = load_reference(EMBEDDED)
    assert reference.metadata.num_images == 50_000
    assert reference.metadata.dataset_split == reference.name == EMBEDDED.reference
    # Records hold this checksum.
    assert str(reference.sha256).startswith("c5e15be2f7b52100a275098e64e08484")
    features = reference.real_features(EMBEDDED)
    assert features.shape == (5000, 1280)
    assert np.linalg.eigvalsh(reference.sigma)[0] > 0  # 50,000 images span all dimensions
    # The stored images are a fair choice: their mean is within six standard errors, everywhere.
    error = features.mean(axis=0, dtype=np.float64) - reference.mu
    standard = np.sqrt(np.diag(reference.sigma) / len(features))
    assert np.abs(error / standard).max() < 6


@pytest.mark.parametrize("name", ["adm-imagenet64", "adm-lsun-bedroom256", "adm-lsun-cat256"])
def test_a_model_is_scored_against_the_data_that_it_was_trained_on(name: str) -> None:
    dataset = f"{name.removeprefix('adm-')}-train"
    assert default_reference(ADM, dataset) == name
    assert registered_references()[name].dataset_split == dataset
    assert default_reference(ADM, None) == ADM.reference
    with pytest.raises(ValueError, match=f"data set '{EMBEDDED.reference}', .* need '{dataset}'"):
        load_reference(EMBEDDED, dataset=dataset)
    assert load_reference(EMBEDDED, EMBEDDED.reference, dataset)  # by its name it may be of others


@pytest.mark.slow
def test_the_bundled_reference_can_be_built_again() -> None:
    source = SHARED / "data" / "cifar10-jpeg-train.zip"
    if not source.is_file():
        pytest.skip("needs ../shared/data")
    build = functools.partial(build_reference, dataset="cifar10-jpeg", split="train")
    bundled, again = load_reference(EMBEDDED), build(open_images(source), EMBEDDED)
    assert again.metadata == bundled.metadata
    # Convolutions of other machines and other versions of torch differ by 1e-6 of a feature.
    np.testing.assert_allclose(again.mu, bundled.mu, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(again.sigma, bundled.sigma, rtol=1e-5, atol=1e-7)
    # 1e-3: a float16 has 11 digits.
    np.testing.assert_allclose(again.features, bundled.features, rtol=1e-3, atol=1e-6)
