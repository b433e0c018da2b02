import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cmrepro.files import array_sha256
from cmrepro.metrics.features import extract, load_extractor
from cmrepro.metrics.protocols import Protocol, load_protocol
from cmrepro.metrics.references import (
    ReferenceMetadata,
    ReferenceStatistics,
    build_reference,
    bundled_reference,
    bundled_references,
    load_reference,
)

PROTOCOL = dataclasses.replace(load_protocol("embedded"), reference_features=5, reference_seed=3)


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def built() -> ReferenceStatistics:
    return build_reference(images(), PROTOCOL, dataset="noise", split="all")


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


def test_saving_and_loading_changes_nothing(
    built: ReferenceStatistics, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "noise.npz"
    built.save(path)
    loaded = load_reference(PROTOCOL, path)
    for name in ("mu", "sigma", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name))
    assert loaded.metadata == built.metadata
    assert [file.name for file in tmp_path.iterdir()] == ["noise.npz"]


def test_an_interrupted_save_leaves_nothing(
    built: ReferenceStatistics, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built.save(tmp_path / "noise.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": "inception"}, "extractor 'efficientnet-lite0', .* asks for 'inception'"),
        ({"image_size": 128}, "image_size 64, .* asks for 128"),
        ({"resize": "bicubic"}, "resize 'bilinear', .* asks for 'bicubic'"),
        ({"name": "other"}, "protocol 'embedded', .* asks for 'other'"),
        ({"version": 99}, f"protocol version {PROTOCOL.version}, .* asks for 99"),
    ],
)
def test_another_protocol_is_refused(
    change: dict[str, Any], message: str, built: ReferenceStatistics
) -> None:
    with pytest.raises(ValueError, match=message):
        built.require_protocol(dataclasses.replace(PROTOCOL, **change))


def skewed(arrays: dict[str, np.ndarray]) -> None:
    arrays["sigma"][0, 1] += 1


def not_finite(arrays: dict[str, np.ndarray]) -> None:
    arrays["sigma"][3, 3] = np.nan


def smaller(arrays: dict[str, np.ndarray]) -> None:
    arrays["sigma"] = arrays["sigma"][:-1, :-1]


def other_features(arrays: dict[str, np.ndarray]) -> None:
    arrays["features"] = arrays["features"][:, :-1]


def foreign(arrays: dict[str, np.ndarray]) -> None:
    """As TTUR's or clean-fid's files."""
    del arrays["features"], arrays["metadata"]


def unknown_metadata(arrays: dict[str, np.ndarray]) -> None:
    metadata = json.loads(arrays["metadata"].tobytes()) | {"seed": 1}
    arrays["metadata"] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (skewed, "sigma differs from its transpose by 1"),
        (not_finite, "hold values that are not finite"),
        (smaller, r"mu has shape \(1280,\) and sigma \(1279, 1279\)"),
        (other_features, "features have 1279 dimensions and mu 1280"),
        (foreign, "lacks features, metadata; build it"),
        (unknown_metadata, "wrong type at seed"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(
    damage: Callable[[dict[str, np.ndarray]], None],
    message: str,
    built: ReferenceStatistics,
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "reference.npz"
    built.save(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    damage(arrays)
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        ReferenceStatistics.load(path)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda content: b"{}"])
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes], built: ReferenceStatistics, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "reference.npz"
    built.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is not a readable .npz"):
        ReferenceStatistics.load(path)


def test_a_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"is not a readable .npz"):
        ReferenceStatistics.load(path)


def test_missing_files_names_and_images_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no reference statistics at"):
        load_reference(PROTOCOL, tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"unknown reference 'cifar10-train'.*cifar10-jpeg-train"):
        bundled_reference("cifar10-train")
    with pytest.raises(ValueError, match="4 images, protocol 'embedded' stores features of 5"):
        build_reference(images(4), PROTOCOL, dataset="noise", split="all")


def test_the_bundled_reference_serves_its_protocol() -> None:
    protocol: Protocol = load_protocol("embedded")
    reference = load_reference(protocol)
    path = bundled_references()[protocol.reference]
    assert reference.metadata.num_images == 50_000
    assert f"{reference.metadata.dataset}-{reference.metadata.split}" == protocol.reference
    assert reference.features.shape == (protocol.reference_features, 1280)
    assert np.linalg.eigvalsh(reference.sigma)[0] > 0  # 50,000 images span all dimensions
    # The stored images are a fair choice: their mean is within six standard errors, everywhere.
    error = reference.features.mean(axis=0, dtype=np.float64) - reference.mu
    standard = np.sqrt(np.diag(reference.sigma) / protocol.reference_features)
    assert np.abs(error / standard).max() < 6
    assert path.stat().st_size < 17e6  # the bundled files share 40 MB
