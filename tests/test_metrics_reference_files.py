import dataclasses
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cmrepro.metrics.reference_files import (
    NpzImages,
    ReferenceMetadata,
    StoredStatistics,
    read_statistics,
    write_statistics,
)

DIM, SPATIAL = 6, 4
Arrays = dict[str, np.ndarray]


def gaussian(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(seed).standard_normal((50, dim))
    return features.mean(axis=0), np.cov(features, rowvar=False)


MU, SIGMA = gaussian(DIM, 0)
MU_S, SIGMA_S = gaussian(SPATIAL, 1)
IMAGES = np.random.default_rng(2).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def ttur() -> Arrays:
    """As TTUR, EDM and clean-fid write it."""
    return {"mu": MU.copy(), "sigma": SIGMA.copy()}


def adm() -> Arrays:
    return {**ttur(), "mu_s": MU_S, "sigma_s": SIGMA_S, "arr_0": IMAGES}


def own() -> StoredStatistics:
    metadata = ReferenceMetadata(
        "noise", "all", 50, "ab" * 32, 3, "mine", 2, "net", 64, "bilinear"
    )
    features = np.arange(2 * DIM, dtype=np.float32).reshape(2, DIM)
    return StoredStatistics(MU, SIGMA.astype(np.float32).astype(np.float64), features, metadata)


def written(folder: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    path = folder / "reference.npz"
    np.savez(path, **arrays)
    return path


def check_refused(
    path: pathlib.Path, message: str, kind: type[Exception] = ValueError, **options: str
) -> None:
    with pytest.raises(kind) as error:
        read_statistics(path, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_writing_and_reading_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "noise.npz"
    spatial = {"spatial_mu": MU_S, "spatial_sigma": SIGMA_S.astype(np.float32).astype(float)}
    for statistics in (own(), dataclasses.replace(own(), features=None, **spatial)):
        write_statistics(path, statistics)
        loaded = read_statistics(path)
        for field in dataclasses.fields(statistics):
            ours, got = (getattr(s, field.name) for s in (statistics, loaded))
            np.testing.assert_array_equal(got, ours)
        assert loaded.metadata == statistics.metadata
    assert [file.name for file in tmp_path.iterdir()] == ["noise.npz"]
    with np.load(path, allow_pickle=False) as file:  # as the other tools do
        np.testing.assert_array_equal(file["mu"], MU)
        assert file["sigma"].shape == (DIM, DIM)


def test_an_interrupted_write_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_statistics(tmp_path / "noise.npz", own())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_ttur_edm_and_cleanfid(tmp_path: pathlib.Path, dtype: type) -> None:
    arrays = {"mu": MU.astype(dtype), "sigma": SIGMA}  # clean-fid's mean is float32
    loaded = read_statistics(written(tmp_path, arrays))
    np.testing.assert_array_equal(loaded.mu, arrays["mu"].astype(np.float64))
    np.testing.assert_array_equal(loaded.sigma, SIGMA)
    assert loaded.mu.dtype == loaded.sigma.dtype == np.float64
    assert loaded.features is loaded.spatial_mu is loaded.images is None
    assert loaded.metadata == ReferenceMetadata() and loaded.metadata.name == "unknown"


def test_two_triangles_rounded_apart_to_float32_are_symmetric(tmp_path: pathlib.Path) -> None:
    sigma = SIGMA.astype(np.float32)
    sigma[0, 1] = np.nextafter(sigma[0, 1], np.float32(9))
    assert (sigma != sigma.T).any()
    read_statistics(written(tmp_path, {"mu": MU, "sigma": sigma}))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adms_files_and_their_images(tmp_path: pathlib.Path, save: Callable[..., None]) -> None:
    path = tmp_path / "VIRTUAL.npz"
    save(path, **adm(), mu_clip=MU, sigma_clip=SIGMA, arr_1=np.arange(10))
    loaded = read_statistics(path)
    np.testing.assert_array_equal(loaded.spatial_mu, MU_S)
    np.testing.assert_array_equal(loaded.spatial_sigma, SIGMA_S)
    assert loaded.images == NpzImages(path, IMAGES.shape)
    for size in (3, 5, 64):
        batches = list(loaded.images.batches(size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        np.testing.assert_array_equal(np.concatenate(batches), IMAGES)
    np.testing.assert_array_equal(next(loaded.images.batches(4, 3, 5)), IMAGES[3:5])


def test_images_of_an_adm_file_are_read_only_when_asked_for(tmp_path: pathlib.Path) -> None:
    images = np.tile(IMAGES, (100, 1, 1, 1))  # beyond what zipfile reads at once
    path = written(tmp_path, {**adm(), "arr_0": images})
    content = bytearray(path.read_bytes())
    content[content.index(images.tobytes()) + images.size - 5] ^= 255
    path.write_bytes(content)
    stored = read_statistics(path).images
    assert stored is not None and stored.num_images == 1000
    with pytest.raises(ValueError, match=r"is not a readable .npz \(Bad CRC-32"):
        list(stored.batches(4))


def test_edms_pickles(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "img64.pkl"
    other = dict(zip(("mu", "sigma"), gaussian(3, 5), strict=True))
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        edm2 = {"num_images": 1_281_167, "fid": ttur(), "fd_dinov2": other}
        path.write_bytes(pickle.dumps(edm2, protocol))
        loaded = read_statistics(path)
        np.testing.assert_array_equal(loaded.mu, MU)
        np.testing.assert_array_equal(loaded.sigma, SIGMA)
        assert loaded.metadata == ReferenceMetadata(num_images=1_281_167)
        dinov2 = read_statistics(path, entry="fd_dinov2")
        np.testing.assert_array_equal(dinov2.mu, other["mu"])
        assert dinov2.metadata.resize == "bicubic, antialiased (NVlabs/edm2)"
        fortran = {"mu": MU, "sigma": np.asfortranarray(SIGMA + np.triu(SIGMA * 1e-9))}
        path.write_bytes(pickle.dumps(fortran, protocol))  # as EDM's .npz would be
        np.testing.assert_array_equal(read_statistics(path).sigma, fortran["sigma"])


def test_pickles_of_older_numpy_are_read(tmp_path: pathlib.Path) -> None:
    content = pickle.dumps(ttur(), 4)
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_executed(tmp_path: pathlib.Path, protocol: int) -> None:
    path, ran = tmp_path / "bad.pkl", tmp_path / "ran"
    for call, name in [
        ((os.system, f"touch {ran}"), "posix.system"),
        ((eval, f"open({str(ran)!r}, 'w')"), "eval"),
        ((open, str(ran), "w"), "open"),
        ((getattr, np.ndarray, "tofile"), "getattr"),
    ]:
        path.write_bytes(pickle.dumps({"fid": {**ttur(), "mu": Malicious(*call)}}, protocol))
        check_refused(path, rf"not a readable pickle of statistics \(it calls \S*{name}\)")
        assert not ran.exists()
    pickle.loads(pickle.dumps(Malicious(os.system, f"touch {ran}"), protocol))
    assert ran.exists()  # so the first would have run


def test_a_pickle_cannot_change_numpy(tmp_path: pathlib.Path) -> None:
    before = pickle.dumps(MU, 5)
    # The instruction "b" sets attributes of the object below, here of a function.
    attack = (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\nN}X\x0c\x00\x00\x00__defaults__NseX\x00b."
    )
    path = tmp_path / "bad.pkl"
    path.write_bytes(attack)
    check_refused(path, "is not a readable pickle|holds")
    np.testing.assert_array_equal(pickle.loads(before), MU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MU, "holds ndarray, must hold mu and sigma, or fid with these two"),
        ({}, "holds dict, must hold"),
        ({"fd_dinov2": ttur()}, "holds fd_dinov2, must hold"),
        ({"fid": {"mu": MU}}, "holds fid, must hold"),
        ({"fid": {**ttur(), "x": 1}}, "holds fid, must hold"),
        ({"fid": [MU, SIGMA]}, "holds fid, must hold"),
        ({"mu": MU}, "holds mu, must hold"),
        ({"mu": MU.tolist(), "sigma": SIGMA}, "mu is list, must be an array of floats"),
        ({"mu": MU, "sigma": SIGMA.astype(int)}, "sigma is int64, must be"),
        ({"mu": MU, "sigma": SIGMA.astype(object)}, "sigma is object, must be"),
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


def test_a_torn_pickle_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "torn.pkl"
    whole = pickle.dumps({"fid": ttur()})
    for size in [*range(40), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        check_refused(path, "is not a readable pickle of statistics")
    generator = np.random.default_rng(0)
    for _ in range(300):  # whatever bytes: one line, or arrays that can be statistics
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            loaded = read_statistics(path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert loaded.mu.shape == (DIM,) and np.isfinite(loaded.sigma).all()


def skewed(arrays: Arrays) -> None:
    arrays["sigma"][0, 1] += 1


def not_finite(arrays: Arrays) -> None:
    arrays["sigma"][3, 3] = np.nan


def smaller(arrays: Arrays) -> None:
    arrays["sigma"] = arrays["sigma"][:-1, :-1]


def integers(arrays: Arrays) -> None:
    arrays["mu"] = arrays["mu"].astype(np.int64)


def without_sigma(arrays: Arrays) -> None:
    del arrays["sigma"]


def with_more(arrays: Arrays) -> None:
    arrays["feats"] = arrays["mu"]


@pytest.mark.parametrize("make", [ttur, adm])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (skewed, "sigma differs from its transpose by 1"),
        (not_finite, "hold values that are not finite"),
        (smaller, r"mu has shape \(6,\) and sigma \(5, 5\)"),
        (integers, "mu is int64, must be an array of floats"),
        (without_sigma, "lacks sigma; reference statistics are mu, sigma"),
        (with_more, "holds feats; reference statistics are mu, sigma"),
    ],
)
def test_statistics_that_cannot_be_right_are_refused(
    make: Callable[[], Arrays],
    damage: Callable[[Arrays], None],
    message: str,
    tmp_path: pathlib.Path,
) -> None:
    arrays = make()
    damage(arrays)
    check_refused(written(tmp_path, arrays), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_s": SIGMA_S + np.triu(SIGMA_S)}, "spatial statistics: sigma differs"),
        ({"mu_s": MU}, r"spatial statistics: mu has shape \(6,\) and sigma \(4, 4\)"),
        ({"mu_s": None}, "lacks mu_s"),
        ({"arr_0": None}, "lacks arr_0"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 float32 .*must be uint8"),
        ({"arr_0": IMAGES[0]}, r"arr_0 uint8 \(8, 8, 3\), must be"),
        ({"arr_0": IMAGES[..., :1]}, r"arr_0 uint8 \(10, 8, 8, 1\), must be"),
        ({"arr_0": IMAGES[:0]}, r"arr_0 uint8 \(0, 8, 8, 3\), must be"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "arr_0 uint8 "),
    ],
)
def test_what_is_not_adms_is_refused(
    change: dict[str, np.ndarray | None], message: str, tmp_path: pathlib.Path
) -> None:
    arrays = {key: value for key, value in {**adm(), **change}.items() if value is not None}
    check_refused(written(tmp_path, arrays), message)


def other_features(arrays: Arrays) -> None:
    arrays["features"] = arrays["features"][:, :-1]


def spatial_without_covariance(arrays: Arrays) -> None:
    arrays["mu_s"] = MU_S


def metadata(**change: Any) -> Callable[[Arrays], None]:
    def damage(arrays: Arrays) -> None:
        values = json.loads(arrays["metadata"].tobytes()) | change
        arrays["metadata"] = np.frombuffer(json.dumps(values).encode(), np.uint8)

    return damage


def no_json(arrays: Arrays) -> None:
    arrays["metadata"] = arrays["metadata"][:-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_features, "features have 5 dimensions and mu 6"),
        (spatial_without_covariance, "lacks sigma_s; reference"),
        (metadata(seed=1), "wrong type at seed"),
        (metadata(num_images="1"), "wrong type at num_images"),
        (metadata(dataset=None), "wrong type at dataset"),
        (no_json, "metadata is not a JSON object"),
    ],
)
def test_a_file_of_ours_that_cannot_be_right_is_refused(
    damage: Callable[[Arrays], None], message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "reference.npz"
    write_statistics(path, own())
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    damage(arrays)
    check_refused(written(tmp_path, arrays), message)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [truncated, flipped, lambda content: b"{}", lambda content: b""]
)
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "reference.npz"
    write_statistics(path, own())
    path.write_bytes(damage(path.read_bytes()))
    check_refused(path, r"is not a readable .npz")


def test_pickles_and_single_arrays_in_an_npz_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.array([{"a": 1}], dtype=object), sigma=SIGMA)
    check_refused(path, r"is not a readable .npz \(Object arrays cannot be loaded")
    with open(path, "wb") as file:
        np.save(file, MU)
    check_refused(path, r"is not a readable .npz \(a single array\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    check_refused(path, "lacks mu, sigma")


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    check_refused(tmp_path / "none.npz", "no reference statistics at", FileNotFoundError)
    check_refused(tmp_path / "none.pkl", "no reference statistics at", FileNotFoundError)
