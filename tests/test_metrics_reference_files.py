"""Files of reference statistics: all formats that are read, and refusals in one line."""

import json
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cmrepro.metrics.reference_files import (
    ReferenceStatistics,
    read_statistics,
    write_statistics,
)
from cmrepro.settings import ReferenceMetadata

DIM, SPATIAL = 6, 4
Arrays = dict[str, Any]


def gaussian(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(seed).standard_normal((50, dim))
    return features.mean(axis=0), np.cov(features, rowvar=False)


MU, SIGMA = gaussian(DIM, 0)
MU_S, SIGMA_S = gaussian(SPATIAL, 1)
IMAGES = np.random.default_rng(2).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
TTUR = {"mu": MU, "sigma": SIGMA}  # as TTUR, EDM and clean-fid write it
ADM = {**TTUR, "mu_s": MU_S, "sigma_s": SIGMA_S, "arr_0": IMAGES}
METADATA = ReferenceMetadata(dataset="noise", split="all", num_images=50, extractor="net")
FEATURES = np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM)
BUILT = ReferenceStatistics(MU, SIGMA.astype(np.float32).astype(float), FEATURES, METADATA)


def check_refused(path: pathlib.Path, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_statistics(path)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_writing_and_reading_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "noise.npz"
    spatial = {"spatial_mu": MU_S, "spatial_sigma": SIGMA_S.astype(np.float32).astype(float)}
    for statistics in (BUILT, replace(BUILT, features=None, **spatial)):
        write_statistics(path, statistics)
        loaded = read_statistics(path)
        for name in ("mu", "sigma", "features", "spatial_mu", "spatial_sigma"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(statistics, name))
        assert loaded.metadata == statistics.metadata
    with np.load(path, allow_pickle=False) as file:  # as the other tools do
        np.testing.assert_array_equal(file["mu"], MU)
        assert file["sigma"].shape == (DIM, DIM)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_ttur_edm_and_cleanfid(tmp_path: pathlib.Path, dtype: type) -> None:
    sigma = SIGMA.astype(dtype)
    sigma[0, 1] = np.nextafter(sigma[0, 1], dtype(9))  # two triangles rounded apart
    path = tmp_path / "reference.npz"
    np.savez(path, mu=MU.astype(dtype), sigma=sigma)  # clean-fid's mean is float32
    loaded = read_statistics(path)
    np.testing.assert_array_equal(loaded.mu, MU.astype(dtype))
    np.testing.assert_array_equal(loaded.sigma, sigma)
    assert loaded.mu.dtype == loaded.sigma.dtype == np.float64
    assert loaded.features is loaded.spatial_mu is None
    assert loaded.metadata == ReferenceMetadata()


def test_adms_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "VIRTUAL.npz"
    np.savez_compressed(path, **ADM, mu_clip=MU, sigma_clip=SIGMA, arr_1=np.arange(10))
    loaded = read_statistics(path)
    np.testing.assert_array_equal(loaded.spatial_mu, MU_S)
    np.testing.assert_array_equal(loaded.spatial_sigma, SIGMA_S)
    assert loaded.num_images == 10


def test_edms_pickles(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "img64.pkl"
    other = dict(zip(("mu", "sigma"), gaussian(3, 5), strict=True))
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        edm2 = {"num_images": 1_281_167, "fid": TTUR, "fd_dinov2": other}
        path.write_bytes(pickle.dumps(edm2, protocol))
        loaded = read_statistics(path)
        np.testing.assert_array_equal(loaded.mu, MU)
        np.testing.assert_array_equal(loaded.sigma, SIGMA)
        assert loaded.metadata == ReferenceMetadata(num_images=1_281_167)
        fortran = {"mu": MU, "sigma": np.asfortranarray(SIGMA + np.triu(SIGMA * 1e-9))}
        path.write_bytes(pickle.dumps(fortran, protocol))
        np.testing.assert_array_equal(read_statistics(path).sigma, fortran["sigma"])


def test_pickles_of_older_numpy_are_read(tmp_path: pathlib.Path) -> None:
    content = pickle.dumps(TTUR, 4)
    assert content.count(b"numpy._core.multiarray") == 1
    old = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    frame = content[3:11]
    old = old.replace(frame, (int.from_bytes(frame, "little") - 1).to_bytes(8, "little"), 1)
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    np.testing.assert_array_equal(read_statistics(path).mu, MU)


class Malicious:
    """Runs a command when it is unpickled without care."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_nothing_in_a_pickle_is_executed(tmp_path: pathlib.Path, protocol: int) -> None:
    path, ran = tmp_path / "bad.pkl", tmp_path / "ran"
    for call, name in [
        ((os.system, f"touch {ran}"), "posix.system"),
        ((eval, f"open({str(ran)!r}, 'w')"), "eval"),
        ((getattr, np.ndarray, "tofile"), "getattr"),
    ]:
        path.write_bytes(pickle.dumps({"fid": {**TTUR, "mu": Malicious(*call)}}, protocol))
        check_refused(path, rf"it calls \S*{name}")
        assert not ran.exists()


def test_a_pickle_cannot_change_numpy(tmp_path: pathlib.Path) -> None:
    before = pickle.dumps(MU, 5)
    # The instruction "b" sets attributes of the object below, here of a function.
    attack = (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\nN}X\x0c\x00\x00\x00__defaults__NseX\x00b."
    )
    path = tmp_path / "bad.pkl"
    path.write_bytes(attack)
    check_refused(path, "does not hold reference statistics")
    np.testing.assert_array_equal(pickle.loads(before), MU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MU, "does not hold"),
        ({"fd_dinov2": TTUR}, "KeyError: 'fid'"),
        ({"fid": {"mu": MU}}, "KeyError: 'sigma'"),
        ({"mu": MU, "sigma": SIGMA.astype(int)}, "sigma int64, must be floats"),
        ({"mu": MU, "sigma": SIGMA[:-1, :-1]}, r"mu has shape \(6,\) and sigma \(5, 5\)"),
        ({"mu": MU + np.nan, "sigma": SIGMA}, "not finite"),
    ],
)
def test_a_pickle_of_something_else_is_refused(
    tmp_path: pathlib.Path, content: Any, message: str
) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    check_refused(path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": SIGMA + np.triu(SIGMA, 1)}, "sigma differs from its transpose"),
        ({"sigma": np.full_like(SIGMA, np.nan)}, "hold values that are not finite"),
        ({"sigma": SIGMA[:-1, :-1]}, r"mu has shape \(6,\) and sigma \(5, 5\)"),
        ({"mu": np.arange(DIM)}, "mu is int64"),
        ({"mu": np.array([{}], dtype=object)}, "Object arrays cannot be loaded"),
        ({"sigma": None}, "it holds arr_0, mu, mu_s, sigma_s, must hold mu and sigma"),
        ({"feats": MU}, "it holds arr_0, feats"),
        ({"sigma_s": SIGMA_S + np.triu(SIGMA_S)}, "sigma differs from its transpose"),
        ({"mu_s": None}, "KeyError: 'mu_s'"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32 .*must be uint8"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \(8, 8, 3\), must be"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "arr_0 is uint8 "),
    ],
)
def test_arrays_that_cannot_be_statistics_are_refused(
    change: Arrays, message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **{key: value for key, value in (ADM | change).items() if value is not None})
    check_refused(path, message)


def metadata(**change: Any) -> Callable[[Arrays], Any]:
    def changed(arrays: Arrays) -> np.ndarray:
        values = json.loads(arrays["metadata"].tobytes()) | change
        return np.frombuffer(json.dumps(values).encode(), np.uint8)

    return changed


@pytest.mark.parametrize(
    ("key", "changed", "message"),
    [
        ("features", lambda arrays: FEATURES[:, :-1], "features and mu have other dimensions"),
        ("metadata", metadata(num_image=1), "'num_image'.*did you mean 'num_images'"),
        ("metadata", metadata(num_images="1"), 'num_images = "1"'),
        ("metadata", lambda arrays: arrays["metadata"][:-1], "JSONDecodeError"),
    ],
)
def test_a_wrong_file_of_ours_is_refused(
    key: str, changed: Callable[[Arrays], Any], message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "reference.npz"
    write_statistics(path, BUILT)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **(arrays | {key: changed(arrays)}))
    check_refused(path, message)


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_a_damaged_file_is_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"reference{suffix}"
    check_refused(path, "no reference statistics at")
    write_statistics(path, BUILT) if suffix == ".npz" else path.write_bytes(pickle.dumps(TTUR))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for content in (whole[: len(whole) // 2], whole[:-1], b"{}", b"", flipped):
        path.write_bytes(content)
        if content is not flipped or suffix == ".npz":  # a pickle has no checksum
            check_refused(path, "does not hold reference statistics")
