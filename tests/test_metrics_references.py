import dataclasses
import hashlib
import pathlib
import pickle
import re
import socket
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from artifacts import ARTIFACTS

from cmrepro.data import ImageDataset, open_images
from cmrepro.files import array_sha256, sha256
from cmrepro.metrics import reference_registry, references
from cmrepro.metrics.extractors import Features, extract, load_extractor
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.metrics.reference_files import ReferenceMetadata, write_statistics
from cmrepro.metrics.reference_registry import (
    bundled_references,
    fetch_reference,
    reference_rows,
    registered_references,
)
from cmrepro.metrics.references import ReferenceStatistics, build_reference, load_reference
from cmrepro.settings import Protocol

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
PROTOCOL = load_protocol("embedded").replace(stored_features={"num_images": 5, "seed": 3})
# Of few dimensions, with spatial features, for the extractor below.
SMALL = load_protocol("adm").replace(
    extractor=load_protocol("adm").extractor.replace(name="means", feature_dim=6, spatial_dim=3),
    stored_features={"num_images": 4, "seed": 0},
)


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


NOISE = ImageDataset("noise", images())


def means(batch: np.ndarray, extractor: Any = None) -> Features:
    """Mean and standard deviation of each channel as features, the first pixel as spatial ones."""
    pixels = batch.astype(np.float32).reshape(len(batch), -1, 3)
    features = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    return Features(features, None, pixels[:, 0])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    monkeypatch.setattr(references, "load_extractor", lambda settings, device: settings)
    monkeypatch.setattr(references, "extract", means)
    return SMALL


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture(scope="module")
def built() -> ReferenceStatistics:
    return build_reference(NOISE, PROTOCOL, dataset="noise", split="all")


def statistics(dim: int = 2048) -> dict[str, np.ndarray]:
    return {"mu": np.zeros(dim), "sigma": np.eye(dim)}


def test_a_reference_holds_the_moments_and_a_seeded_choice_of_features(
    built: ReferenceStatistics,
) -> None:
    features = extract(images(), load_extractor(PROTOCOL.extractor)).features
    # float32 is what the file keeps of sigma, float16 of the features.
    np.testing.assert_allclose(built.mu, features.mean(axis=0, dtype=np.float64), rtol=1e-12)
    sigma = np.cov(features.astype(np.float64), rowvar=False).astype(np.float32)
    np.testing.assert_allclose(built.sigma, sigma, rtol=1e-6, atol=1e-9)
    chosen = np.sort(np.random.RandomState(3).permutation(12)[:5])
    np.testing.assert_array_equal(
        built.features, features[chosen].astype(np.float16).astype(np.float32)
    )
    assert built.metadata == ReferenceMetadata(
        dataset="noise",
        split="all",
        num_images=12,
        images_sha256=array_sha256(images()),
        features_seed=3,
        protocol="embedded",
        protocol_version=PROTOCOL.version,
        extractor="efficientnet-lite0",
        image_size=64,
        resize="bilinear",
    )
    assert (built.name, built.sha256, built.spatial_mu) == ("noise-all", None, None)


def test_saving_and_loading_changes_nothing(
    built: ReferenceStatistics, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "own.npz"
    write_statistics(path, built)
    loaded = load_reference(PROTOCOL, path)
    for name in ("mu", "sigma", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name))
    assert loaded.metadata == built.metadata
    assert (loaded.name, loaded.sha256) == ("own", sha256(path))
    assert loaded.warnings(PROTOCOL) == []


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images made when they are needed; more or fewer than announced where `given` says so."""

    num_images: int
    given: int | None = None
    side: int = 8

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        end = stop or self.given or self.num_images
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            yield np.random.default_rng(first).integers(
                0, 256, (count, self.side, self.side, 3), dtype=np.uint8
            )


def test_a_stream_gives_what_an_array_gives(small: Protocol, tmp_path: pathlib.Path) -> None:
    stream = Stream(5000)  # more than are gathered between two updates of the moments
    whole = np.concatenate(list(stream.batches(64)))
    given = means(whole)
    for source in (stream, ImageDataset("noise", whole)):
        got = build_reference(source, small, dataset="noise", split="all")
        np.testing.assert_allclose(got.mu, given.features.mean(axis=0, dtype=np.float64))
        # 1e-6: what rounding to float32 leaves.
        sigma = np.cov(given.features.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(got.sigma, sigma, rtol=1e-6, atol=1e-6 * sigma.max())
        mu_s, sigma_s = got.spatial_moments()
        np.testing.assert_allclose(mu_s, given.spatial.mean(axis=0, dtype=np.float64))
        np.testing.assert_allclose(
            sigma_s, np.cov(given.spatial.astype(np.float64), rowvar=False), rtol=1e-6, atol=1e-2
        )
        assert got.metadata.images_sha256 == hashlib.sha256(whole.tobytes()).hexdigest()
        chosen = np.sort(np.random.RandomState(0).permutation(5000)[:4])
        np.testing.assert_array_equal(
            got.real_features(small), given.features[chosen].astype(np.float16)
        )
    write_statistics(tmp_path / "a.npz", got)
    again = load_reference(small, tmp_path / "a.npz")
    for ours, theirs in zip(again.spatial_moments(), got.spatial_moments(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_memory_does_not_grow_with_the_number_of_images(
    small: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide(batch: np.ndarray, extractor: Any) -> Features:
        features, logits, spatial = means(batch)
        return Features(np.tile(features, 16), logits, spatial)

    monkeypatch.setattr(references, "extract", wide)
    extractor = small.extractor.replace(feature_dim=96)
    protocol = small.replace(extractor=extractor)
    peaks = []
    for count in (15_000, 60_000):  # several rounds of 4,096 each
        tracemalloc.start()
        build_reference(Stream(count), protocol, dataset="noise", split="all")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A flag and three numbers an image, for the choice of the stored ones; its pixels have 192
    # bytes and its features 384.
    assert peaks[1] - peaks[0] < 30 * 45_000


def test_images_of_another_type_are_refused() -> None:
    floats = ImageDataset("noise", images().astype(np.float32))
    with pytest.raises(ValueError, match="images are float32, must be a uint8 array"):
        build_reference(floats, PROTOCOL, dataset="noise", split="all")


def test_images_that_cannot_be_right_are_refused(small: Protocol) -> None:
    with pytest.raises(ValueError, match="4 images, protocol 'embedded' stores features of 5"):
        build_reference(ImageDataset("noise", images(4)), PROTOCOL, dataset="noise", split="all")
    with pytest.raises(ValueError, match="100 images announced, 70 given"):
        build_reference(Stream(100, given=70), small, dataset="noise", split="all")
    with pytest.raises(ValueError, match="100 images announced, 128 given"):
        build_reference(Stream(100, given=130), small, dataset="noise", split="all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "inception"}, "extractor 'efficientnet-lite0', .* asks for 'inception'"),
        ({"image_size": 128}, "image_size 64, .* asks for 128"),
        ({"resize": "pil-bicubic"}, "resize 'bilinear', .* asks for 'pil-bicubic'"),
        ({"feature_dim": 2048}, "dimension 1280, .* asks for 2048"),
    ],
)
def test_another_extractor_is_refused(
    change: dict[str, Any], message: str, built: ReferenceStatistics
) -> None:
    extractor = PROTOCOL.extractor.replace(**change)
    check_refused(built, PROTOCOL.replace(extractor=extractor), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "protocol 'embedded', .* asks for 'other'"),
        ({"version": 99}, f"protocol version {PROTOCOL.version}, .* asks for 99"),
        ({"dataset": "cifar10-train"}, "data set 'noise-all', .* asks for 'cifar10-train'"),
    ],
)
def test_another_protocol_is_refused(
    change: dict[str, Any], message: str, built: ReferenceStatistics
) -> None:
    check_refused(built, PROTOCOL.replace(**change), message)
    built.require_protocol(PROTOCOL.replace(dataset="noise-all"))


def test_images_of_another_data_set_are_refused(built: ReferenceStatistics) -> None:
    built.require_protocol(PROTOCOL, "noise-all")
    with pytest.raises(ValueError, match=r"data set 'noise-all'.*a model of 'cifar10-train'"):
        built.require_protocol(PROTOCOL, "cifar10-train")


def check_refused(reference: ReferenceStatistics, protocol: Protocol, message: str) -> None:
    with pytest.raises(ValueError) as error:
        reference.require_protocol(protocol)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_metadata_is_taken_on_trust_with_a_warning(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "theirs.npz"
    np.savez(path, **statistics())
    reference = load_reference(load_protocol("edm"), path)
    (warning,) = reference.warnings(load_protocol("edm"))
    assert "theirs does not say what it was made of" in warning
    with pytest.raises(ValueError, match=r"theirs was made with dimension 2048, .* asks for 1280"):
        load_reference(PROTOCOL, path)
    for name, metrics, message in [
        ("torch-fidelity", None, "theirs holds no features for kid, precision, recall; build"),
        ("adm", ("fid", "sfid"), "theirs holds no spatial statistics for sfid; build one"),
    ]:
        protocol = load_protocol(name)
        check_refused(reference, protocol.replace(metrics=metrics or protocol.metrics), message)


def test_a_file_with_fewer_features_has_a_warning(built: ReferenceStatistics) -> None:
    (warning,) = built.warnings(PROTOCOL.replace(stored_features={"num_images": 1000, "seed": 0}))
    assert "features of 5 real images where protocol embedded has 1,000" in warning


def adm_file(path: pathlib.Path, pixels: np.ndarray) -> None:
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **statistics(6), **spatial, arr_0=pixels)


def test_features_come_from_the_images_of_an_adm_file(
    small: Protocol, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = images(70)
    adm_file(tmp_path / "VIRTUAL.npz", pixels)
    reference = load_reference(small, tmp_path / "VIRTUAL.npz")
    assert reference.features is None
    np.testing.assert_array_equal(reference.real_features(small), means(pixels).features)
    monkeypatch.setattr(references, "extract", None)  # and are kept
    assert reference.real_features(small) is reference.features
    assert "features of 70 real images" in reference.warnings(small)[1]


def test_registered_files_get_their_documented_metadata(
    cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cache.mkdir(parents=True)
    np.savez(cache / "edm-cifar10-32x32.npz", **statistics())  # put there by hand
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
    assert reference.name == "edm-cifar10-32x32" and reference.warnings(edm) == []
    message = "edm-cifar10-32x32 was made with extractor 'inception-nvidia', .*'inception-clean'"
    with pytest.raises(ValueError, match=message):
        load_reference(load_protocol("clean-fid"), "edm-cifar10-32x32")
    np.savez(cache / "edm-imagenet-64x64.npz", **statistics())
    message = "data set 'imagenet64-train', protocol 'cm-cifar10' asks for 'cifar10-train'"
    with pytest.raises(ValueError, match=message):
        load_reference(load_protocol("cm-cifar10"), "edm-imagenet-64x64")


def test_edm2s_dinov2_statistics_are_of_another_resize(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    content = {"num_images": 1_281_167, "fid": statistics(), "fd_dinov2": statistics(1024)}
    path = cache / "edm2-imagenet-64x64.pkl"
    path.write_bytes(pickle.dumps(content))
    reference = load_reference(load_protocol("edm2"))
    assert reference.metadata.num_images == 1_281_167
    message = "resize 'bicubic, antialiased .*' asks for 'tensorflow1-bilinear'"
    with pytest.raises(ValueError, match=message):
        load_reference(load_protocol("fd-dinov2"), path)


def test_a_file_that_changes_after_its_first_use_is_refused(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    path = cache / "edm-cifar10-32x32.npz"
    np.savez(path, **statistics())
    assert fetch_reference("edm-cifar10-32x32") == path
    np.savez(path, mu=np.ones(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"expected .* as recorded in") as error:
        load_reference(load_protocol("edm"))
    assert "\n" not in str(error.value)


def test_an_unreachable_address_says_where_to_put_the_file(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:  # a port on which nobody answers
        port = unused.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    entry = registered_references()["adm-imagenet64"]
    moved = dataclasses.replace(entry, url=f"http://127.0.0.1:{port}/a.npz")
    monkeypatch.setattr(reference_registry, "registered_references", lambda: {entry.name: moved})
    with pytest.raises(ValueError, match=f"put the file at {cache / 'adm-imagenet64.npz'}"):
        fetch_reference("adm-imagenet64")


def test_what_nobody_publishes_says_how_to_build_it(small: Protocol, cache: pathlib.Path) -> None:
    path = cache / "cifar10-train-torch-fidelity.npz"
    protocol = load_protocol("torch-fidelity")
    with pytest.raises(ValueError) as error:
        load_reference(protocol)
    command = "build cifar10-train --protocol torch-fidelity --dataset cifar10 --split train"
    assert f"{command} --out {path}`" in str(error.value)
    cut = protocol.replace(
        extractor=protocol.extractor.replace(feature_dim=6),
        stored_features={"num_images": 5, "seed": 0},
    )
    write_statistics(path, build_reference(NOISE, cut, dataset="cifar10", split="train"))
    with pytest.raises(ValueError, match=r"has num_images 12, .*torch-fidelity has 50000; delete"):
        load_reference(cut)


def test_missing_files_and_unknown_names_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no reference statistics at"):
        load_reference(PROTOCOL, tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"unknown reference 'cifar10-jpeg-test': did you mean"):
        load_reference(PROTOCOL, "cifar10-jpeg-test")
    with pytest.raises(ValueError, match="did you mean 'adm-lsun-cat256'"):
        fetch_reference("adm-lsun-cats256")


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_names_a_reference_of_its_own_kind(name: str) -> None:
    protocol = load_protocol(name)
    if protocol.reference in bundled_references():
        return
    entry = registered_references()[protocol.reference]
    assert entry.extractor == protocol.extractor.name
    assert protocol.dataset in (None, entry.metadata.name)
    assert ("sfid" in protocol.metrics) <= (entry.format == "adm")
    if protocol.stored_features:
        assert entry.format in ("adm", "own")


def test_registry() -> None:
    for name, entry in registered_references().items():
        assert entry.format in ("ttur", "adm", "pickle", "own")
        assert (entry.protocol is None) == (entry.url is not None) == (entry.format != "own")
        assert (entry.licence is None) == (entry.bytes_approx is None) == (entry.url is None)
        assert entry.metadata.resize != "unknown" and entry.path.stem == name
        if entry.protocol:
            assert load_protocol(entry.protocol).reference == name
    assert not registered_references().keys() & bundled_references().keys()


def test_addresses_are_those_of_the_list_of_artifacts() -> None:
    entries = registered_references()
    for name in (
        "cifar10-train-cleanfid-legacy-tensorflow",
        "edm-cifar10-32x32",
        "edm-imagenet-64x64",
        "edm-imagenet-64x64-baseline",
        "adm-imagenet64",
        "adm-lsun-bedroom256",
        "adm-lsun-cat256",
    ):
        assert str(entries[name].bytes_approx) == ARTIFACTS[entries[name].url]["bytes_approx"]


def test_the_bundled_reference_serves_its_protocol() -> None:
    protocol = load_protocol("embedded")
    reference = load_reference(protocol)
    path = bundled_references()[protocol.reference]
    assert reference.metadata.num_images == 50_000
    assert reference.metadata.name == reference.name == protocol.reference
    assert reference.sha256 == sha256(path)
    features = reference.real_features(protocol)
    assert protocol.stored_features and features.shape == (5000, 1280)
    assert np.linalg.eigvalsh(reference.sigma)[0] > 0  # 50,000 images span all dimensions
    # The stored images are a fair choice: their mean is within six standard errors, everywhere.
    error = features.mean(axis=0, dtype=np.float64) - reference.mu
    standard = np.sqrt(np.diag(reference.sigma) / len(features))
    assert np.abs(error / standard).max() < 6
    assert path.stat().st_size < 17e6  # the bundled files share 40 MB
    assert reference.warnings(protocol) == []


@pytest.mark.slow
def test_the_bundled_reference_can_be_built_again() -> None:
    source = SHARED / "data" / "cifar10-jpeg-train.zip"
    if not source.is_file():
        pytest.skip("needs ../shared/data")
    protocol = load_protocol("embedded")
    bundled = load_reference(protocol)
    again = build_reference(
        open_images(source), protocol, dataset="cifar10-jpeg", split="train", progress=True
    )
    assert again.metadata == bundled.metadata
    # Convolutions of other machines and other versions of torch differ by 1e-6 of a feature.
    np.testing.assert_allclose(again.mu, bundled.mu, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(again.sigma, bundled.sigma, rtol=1e-5, atol=1e-7)
    # 1e-3: a float16 has 11 digits.
    np.testing.assert_allclose(again.features, bundled.features, rtol=1e-3, atol=1e-6)


def test_every_name_is_listed_with_where_it_is(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    (cache / "edm-cifar10-32x32.npz").write_bytes(b"")
    where = {row["name"]: row["where"] for row in reference_rows()}
    assert where.keys() == bundled_references().keys() | registered_references().keys()
    assert where["cifar10-jpeg-train"] == "bundled"
    assert where["edm-cifar10-32x32"] == "cached"
    assert where["adm-imagenet64"] == "to be fetched"
    assert where["cifar10-train-torch-fidelity"] == "to be built"
