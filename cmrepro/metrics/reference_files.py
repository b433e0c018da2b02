"""Files of reference statistics: what a protocol keeps of the real images.

Our own file is an .npz with `mu` (D,) float64 and `sigma` (D, D) float32 (the keys that TTUR, EDM,
ADM and clean-fid read), `mu_s` and `sigma_s` likewise of spatial features for sFID (ADM's keys),
`features` (M, D) float16 for KID and the manifold metrics, and `metadata`, a JSON object as uint8.
Rounding sigma to float32 moves the Fréchet distance by less than 1e-9 relative (2,000 test images
against 50,000 training images); `build_reference` rounds before anything is scored, so a score
does not change when the reference goes through a file.

Files of other tools are read as they are, and strictly: TTUR, EDM and clean-fid (.npz of `mu` and
`sigma`), EDM2 (.pkl), ADM (.npz of `mu`, `sigma`, `mu_s`, `sigma_s` and 10,000 images `arr_0`).
They do not say what they were made of; `reference_registry` adds what is documented.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cmrepro import npz
from cmrepro.files import atomic_path
from cmrepro.metrics.frechet import check_features, check_gaussian

UNKNOWN = "unknown"

# kind of .npz -> keys that it must have, keys that it may have. arr_1 are labels; mu_clip and
# sigma_clip are what evaluations/th_evaluator.py of openai/consistency_models reads.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "own": ({"mu", "sigma", "metadata"}, {"features", "mu_s", "sigma_s"}),
    "adm": ({"mu", "sigma", "mu_s", "sigma_s", "arr_0"}, {"arr_1", "mu_clip", "sigma_clip"}),
    "ttur": ({"mu", "sigma"}, set()),
}
_SPATIAL = {"mu_s", "sigma_s"}
_NOT_LOADED = {"arr_0", "arr_1", "mu_clip", "sigma_clip"}


@dataclass(frozen=True)
class ReferenceMetadata:
    """Where reference statistics come from; "unknown" or None where nobody says.

    Attributes:
        dataset: Name of the data set, e.g. "cifar10-jpeg".
        split: Its part, e.g. "train".
        num_images: Number of images behind mu and sigma.
        images_sha256: SHA-256 of those images, uint8 (N, H, W, 3) in their order, hexadecimal.
        features_seed: Seed of numpy.random.RandomState whose permutation chose the M images.
        protocol: Name of the protocol they were made for.
        protocol_version: Its version.
        extractor: Name of the extractor.
        image_size: Side length in px that the extractor brought images to.
        resize: How it did so.
    """

    dataset: str = UNKNOWN
    split: str = UNKNOWN
    num_images: int | None = None
    images_sha256: str | None = None
    features_seed: int | None = None
    protocol: str = UNKNOWN
    protocol_version: int | None = None
    extractor: str = UNKNOWN
    image_size: int | None = None
    resize: str = UNKNOWN

    @property
    def name(self) -> str:
        """Data set and split, e.g. "cifar10-jpeg-train"."""
        return UNKNOWN if self.dataset == UNKNOWN else f"{self.dataset}-{self.split}"


@dataclass(frozen=True)
class NpzImages:
    """The images in an ADM file, read batch by batch.

    Attributes:
        path: The .npz.
        shape: (M, H, W, 3) of its uint8 array `arr_0`.
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """M."""
        return self.shape[0]

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller.

        Raises:
            ValueError: The file is cut off or damaged.
        """
        with _readable(self.path):
            yield from npz.image_batches(self.path, batch_size, start, stop)


@dataclass(eq=False)
class StoredStatistics:
    """What a file of reference statistics holds.

    Attributes:
        mu: Mean (D,), float64.
        sigma: Covariance (D, D) with ddof = 1, float64.
        features: Features of M images, (M, D), float32, exact in float16; None without.
        metadata: Where they come from.
        spatial_mu: Mean (S,) of the spatial features, float64; None without.
        spatial_sigma: Their covariance (S, S), float64; None without.
        images: M images whose features are not stored; None without.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray | None
    metadata: ReferenceMetadata
    spatial_mu: np.ndarray | None = None
    spatial_sigma: np.ndarray | None = None
    images: NpzImages | None = None


def write_statistics(path: str | Path, statistics: StoredStatistics) -> None:
    """Write our .npz, complete or not at all; `images` are left out.

    Args:
        path: Final name, ending in .npz.
        statistics: What it is to hold.

    Raises:
        ValueError: If the folder cannot be written.
    """
    arrays: dict[str, Any] = {"mu": statistics.mu, "sigma": statistics.sigma.astype(np.float32)}
    if statistics.features is not None:
        arrays["features"] = statistics.features.astype(np.float16)
    if statistics.spatial_mu is not None and statistics.spatial_sigma is not None:
        arrays["mu_s"] = statistics.spatial_mu
        arrays["sigma_s"] = statistics.spatial_sigma.astype(np.float32)
    text = json.dumps(asdict(statistics.metadata)).encode()
    arrays["metadata"] = np.frombuffer(text, np.uint8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_statistics(path: str | Path, *, entry: str = "fid") -> StoredStatistics:
    """Read and verify a file of ours, TTUR's, EDM's, clean-fid's or ADM's.

    Args:
        path: The .npz or .pkl; nothing in a .pkl is executed.
        entry: Which statistics of EDM2's .pkl: "fid" or "fd_dinov2".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has other keys than such a file has, or holds values
            that cannot be statistics (shapes, symmetry, finiteness).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no reference statistics at {path}; check the path")
    if path.suffix == ".pkl":
        pair, metadata = _read_pickle(path, entry)
        return StoredStatistics(*_gaussian(str(path), pair, "mu", "sigma"), None, metadata)
    arrays, images = _read_npz(path)
    mu, sigma = _gaussian(str(path), arrays, "mu", "sigma")
    spatial_mu = spatial_sigma = None
    if "mu_s" in arrays:
        spatial_mu, spatial_sigma = _gaussian(f"{path}: spatial", arrays, "mu_s", "sigma_s")
    features = arrays.get("features")
    if features is not None:
        features = features.astype(np.float32)
        check_features(f"{path}: features", features)
        if features.shape[1] != len(mu):
            raise ValueError(
                f"{path}: features have {features.shape[1]} dimensions and mu {len(mu)}, "
                "must agree; build it again"
            )
    metadata = ReferenceMetadata()
    if "metadata" in arrays:
        metadata = _parse_metadata(path, arrays["metadata"].tobytes())
    return StoredStatistics(mu, sigma, features, metadata, spatial_mu, spatial_sigma, images)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], NpzImages | None]:
    """The arrays of an .npz but for images, and those."""
    with _readable(path):
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with opened:
            keys = set(opened.files)
            arrays = {key: opened[key] for key in sorted(keys - _NOT_LOADED)}
    adm = keys & {"mu_s", "sigma_s", "arr_0"}
    required, optional = _KEYS["own" if "metadata" in keys else "adm" if adm else "ttur"]
    if keys & _SPATIAL:
        required = required | _SPATIAL
    missing, more = sorted(required - keys), sorted(keys - required - optional)
    if missing or more:
        wrong = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(more)}"
        raise ValueError(
            f"{path} {wrong}; reference statistics are mu, sigma (TTUR, EDM, clean-fid), with "
            "mu_s, sigma_s, arr_0 (ADM) or metadata (`cmrepro references build`)"
        )
    if "arr_0" not in keys:
        return arrays, None
    with _readable(path), npz.open_array(path) as (_, shape, fortran, dtype):
        pass
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not math.prod(shape):
        raise ValueError(
            f"{path} holds arr_0 {dtype} {shape}, must be uint8 (M, H, W, 3); fetch it again"
        )
    return arrays, NpzImages(path, shape)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged .npz raises into one line."""
    try:
        yield
    except npz.DAMAGED as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable .npz ({text}); build or fetch it again"
        ) from error


def _gaussian(
    name: str, arrays: Mapping[str, Any], mu_key: str, sigma_key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in float64, verified."""
    for key in (mu_key, sigma_key):
        kind = getattr(getattr(arrays[key], "dtype", None), "kind", None)
        if kind != "f":
            got = getattr(arrays[key], "dtype", type(arrays[key]).__name__)
            raise ValueError(f"{name}: {key} is {got}, must be an array of floats; fetch it again")
    mu, sigma = arrays[mu_key].astype(np.float64), arrays[sigma_key].astype(np.float64)
    check_gaussian(name, mu, sigma)
    return mu, sigma


def _parse_metadata(path: Path, text: bytes) -> ReferenceMetadata:
    """Metadata from its JSON, with exactly the known keys and types."""
    try:
        values = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: metadata is not a JSON object ({error}); build it again"
        ) from error
    types = {field.name: str(field.type).split(" | ") for field in fields(ReferenceMetadata)}
    wrong = types.keys() ^ values.keys() | {
        key
        for key, value in values.items()
        if type(value).__name__.removesuffix("Type") not in types.get(key, ())
    }
    if wrong:
        raise ValueError(
            f"{path}: metadata is unknown, missing or of a wrong type at "
            f"{', '.join(sorted(wrong))}; build it again with this version"
        )
    return ReferenceMetadata(**values)


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays in plain containers and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy.core", "numpy._core"), name:
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
            case "numpy._core.multiarray", "_reconstruct":
                return np.ndarray.__reduce__(np.empty(0))[0]
            case "numpy._core.numeric", "_frombuffer":
                # A new function each time: a pickle can set attributes of what it looks up.
                return lambda buffer, dtype, shape, order: np.frombuffer(buffer, dtype).reshape(
                    shape, order=order
                )
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _read_pickle(path: Path, entry: str) -> tuple[dict[str, Any], ReferenceMetadata]:
    """Statistics from EDM's pickle of mu and sigma, or EDM2's of one such for each metric."""
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
    except Exception as error:  # damaged pickles raise nearly everything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable pickle of statistics ({text}); fetch it again"
        ) from error
    whole = content if isinstance(content, dict) else {}
    count = whole.pop("num_images", None)
    statistics = whole if "mu" in whole else whole.get(entry)
    if not isinstance(statistics, dict) or statistics.keys() != {"mu", "sigma"}:
        held = ", ".join(map(str, whole)) or type(content).__name__
        raise ValueError(
            f"{path} holds {held}, must hold mu and sigma, or {entry} with these two; fetch "
            "statistics of this kind"
        )
    resize = UNKNOWN if entry == "fid" else "bicubic, antialiased (NVlabs/edm2)"
    return statistics, ReferenceMetadata(
        num_images=count if type(count) is int else None, resize=resize
    )
