"""Files of reference statistics: all formats that are read, and refusals in one line."""

import os
import pathlib
import pickle
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
BUILT = ReferenceStatistics(MU, SIGMA, FEATURES, METADATA)


def test_writing_and_reading_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "noise.npz"
    spatial = {"spatial_mu": MU_S, "spatial_sigma": SIGMA_S}
    for statistics in (BUILT, replace(BUILT, features=None, **spatial)):
        write_statistics(path, statistics)
        loaded = read_statistics(path)
        for name in ("mu", "sigma", "features", "spatial_mu", "spatial_sigma"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(statistics, name))
        assert loaded.metadata == statistics.metadata
    with np.load(path, allow_pickle=False) as file:  # as the other tools do
        np.testing.assert_array_equal(file["mu"], MU)
        assert file["sigma"].shape == (DIM, DIM)


def test_adms_files_hold_images(tmp_path: pathlib.Path) -> None:
    np.savez_compressed(tmp_path / "VIRTUAL.npz", **ADM)
    assert read_statistics(tmp_path / "VIRTUAL.npz").num_images == 10


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
        with pytest.raises(ValueError, match=rf"it calls \S*{name}"):
            read_statistics(path)
        assert not ran.exists()


def test_a_pickle_cannot_change_numpy(tmp_path: pathlib.Path) -> None:
    before = pickle.dumps(MU, 5)
    # The instruction "b" sets attributes of the object below, here of a function.
    attack = (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\nN}X\x0c\x00\x00\x00__defaults__NseX\x00b."
    )
    path = tmp_path / "bad.pkl"
    path.write_bytes(attack)
    with pytest.raises(ValueError, match="does not hold reference statistics"):
        read_statistics(path)
    np.testing.assert_array_equal(pickle.loads(before), MU)
