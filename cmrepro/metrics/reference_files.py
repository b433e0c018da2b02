"""Files of reference statistics, and the protocols that they serve.

Our file is an .npz with `mu` (D,) float64 and `sigma` (D, D) float32 (the keys that TTUR, EDM, ADM
and clean-fid read), `mu_s` and `sigma_s` likewise of spatial features for sFID (ADM's keys),
`features` (M, D) float16 for KID and the manifold metrics, and `metadata`, a JSON object as uint8.
Rounding sigma to float32 moves the Fréchet distance by less than 1e-9 relative. Files of TTUR, EDM
and clean-fid (.npz of `mu` and `sigma`), EDM and EDM2 (.pkl), and ADM (.npz with `mu_s`, `sigma_s`
and 10,000 images `arr_0`), which have no metadata, are read too.
"""

import contextlib
import functools
import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmrepro import npz
from cmrepro.files import atomic_path, cache_folder, sha256
from cmrepro.metrics.extractors import BATCH_SIZE, extract, load_extractor
from cmrepro.metrics.frechet import check_features, check_gaussian
from cmrepro.schema import convert, to_builtins, to_json
from cmrepro.settings import MANIFOLD_METRICS, Protocol, Reference, ReferenceMetadata

FEATURE_METRICS = {"kid", *MANIFOLD_METRICS}  # that need features, not moments alone

# Not loaded: images, labels, and mu_clip and sigma_clip of openai/consistency_models.
_UNLOADED = {"arr_0", "arr_1", "mu_clip", "sigma_clip"}
_KEYS = {"mu", "sigma", "mu_s", "sigma_s", "features", "metadata", *_UNLOADED}


@dataclass(eq=False)
class ReferenceStatistics:
    """Statistics of real images, with the features of M images or the images themselves."""

    mu: np.ndarray  # mean (D,), float64
    sigma: np.ndarray  # covariance (D, D) with ddof = 1, float64
    features: np.ndarray | None = None  # (M, D), float32, exact in float16
    metadata: ReferenceMetadata = ReferenceMetadata()  # noqa: RUF009 (frozen)
    spatial_mu: np.ndarray | None = None  # mean (S,) of the spatial features, float64
    spatial_sigma: np.ndarray | None = None  # their covariance (S, S), float64
    num_images: int = 0  # M, of images in the file
    path: Path | None = None  # file that they were read from

    @property
    def name(self) -> str:
        """Name of the file without its suffix, or of the data set."""
        return self.path.stem if self.path else self.metadata.dataset_split or "unknown"

    @functools.cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the file."""
        return sha256(self.path) if self.path else None

    def for_record(self) -> Reference:
        """Name, checksum and metadata, for a record."""
        return Reference(name=self.name, sha256=self.sha256, **to_builtins(self.metadata))

    def require_protocol(self, protocol: Protocol, dataset: str | None = None) -> None:
        """Raise ValueError unless stated settings fit a protocol and a model's `dataset`."""
        extractor, metadata = protocol.extractor, self.metadata
        spatial = None if self.spatial_mu is None else len(self.spatial_mu)
        for setting, got, expected in [
            ("dimension", len(self.mu), extractor.feature_dim),
            ("spatial dimension", spatial, extractor.spatial_dim or None),
            ("extractor", metadata.extractor, extractor.name),
            ("image_size", metadata.image_size, extractor.image_size),
            ("resize", metadata.resize, extractor.resize),
            ("protocol", metadata.protocol, protocol.name),
            ("protocol version", metadata.protocol_version, protocol.version),
            ("data set", metadata.dataset_split, protocol.dataset),
            ("data set", metadata.dataset_split, dataset),
        ]:
            if None not in (got, expected) and got != expected:
                made = f"reference {self.name} was made with {setting} {got!r}"
                need = f"protocol '{protocol.name}' and the model need {expected!r}"
                raise ValueError(f"{made}, {need}; name or build another")
        absent = {"sfid"} if spatial is None else set()
        if self.features is None and not self.num_images:
            absent |= FEATURE_METRICS
        if lacking := ", ".join(metric for metric in protocol.metrics if metric in absent):
            fix = "build one with `cmrepro references build`, or leave these metrics out"
            raise ValueError(f"reference {self.name} lacks the features for {lacking}; {fix}")

    def warnings(self, protocol: Protocol) -> list[str]:
        """Reasons to read scores against these statistics with care, one line each."""
        warnings, stored = [], protocol.stored_features
        if self.metadata.extractor is None or self.metadata.dataset is None:
            trusted = "its extractor, resize and data set are taken on trust"
            warnings.append(f"reference {self.name} does not say what it was made of: {trusted}")
        count = self.num_images if self.features is None else len(self.features)
        if stored and count not in (0, stored.num_images):
            expected = f"protocol {protocol.name} has {stored.num_images:,}"
            affected = "KID, precision and recall depend on it"
            warnings.append(f"features of {count:,} real images where {expected}: {affected}")
        return warnings

    def real_features(self, protocol: Protocol, device: str = "cpu") -> np.ndarray:
        """Features of M real images; those of images in the file are extracted once and cached."""
        if self.features is None:
            assert self.path is not None  # require_protocol: features, or a file with images
            key = f"{self.sha256} {to_json(protocol.extractor)}".encode()
            digest = hashlib.sha256(key).hexdigest()[:16]
            cached = cache_folder() / "features" / f"{self.name}-{digest}.npy"
            if not cached.is_file():
                network = load_extractor(protocol.extractor, device)
                with _one_line_errors(self.path):
                    batches = npz.image_batches(self.path, BATCH_SIZE)
                    parts = [extract(batch, network).features for batch in batches]
                with atomic_path(cached) as temporary:
                    np.save(temporary, np.concatenate(parts))
            self.features = np.load(cached)
        return self.features


def write_statistics(path: Path, statistics: ReferenceStatistics) -> None:
    """Write our .npz."""
    arrays: dict[str, Any] = {"mu": statistics.mu, "sigma": statistics.sigma.astype(np.float32)}
    if statistics.features is not None:
        arrays["features"] = statistics.features.astype(np.float16)
    if statistics.spatial_mu is not None and statistics.spatial_sigma is not None:
        arrays["mu_s"] = statistics.spatial_mu
        arrays["sigma_s"] = statistics.spatial_sigma.astype(np.float32)
    text = json.dumps(to_builtins(statistics.metadata)).encode()
    arrays["metadata"] = np.frombuffer(text, np.uint8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_statistics(path: Path) -> ReferenceStatistics:
    """Read and verify a file of reference statistics; nothing in a .pkl is executed."""
    if not path.is_file():
        raise ValueError(f"no reference statistics at {path}; check the path")
    with _one_line_errors(path):
        return _read_pickle(path) if path.suffix == ".pkl" else _read_npz(path)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn every error of a wrong or damaged file into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # damaged files raise nearly everything
        text = f"{type(error).__name__}: {error}".partition("\n")[0].removeprefix("ValueError: ")
        fault = f"{path} does not hold reference statistics ({text})"
        raise ValueError(f"{fault}; build or fetch it again") from error


def _read_npz(path: Path) -> ReferenceStatistics:
    with np.load(path, allow_pickle=False) as file:
        keys = set(file.files)
        arrays = {key: file[key] for key in keys - _UNLOADED}
    if not {"mu", "sigma"} <= keys <= _KEYS:
        allowed = "mu_s, sigma_s, arr_0 (ADM) or features, metadata (cmrepro references build)"
        got = ", ".join(sorted(keys)) or "nothing"
        raise ValueError(f"it holds {got}, must hold mu and sigma, with {allowed}")
    result = ReferenceStatistics(*_moments(arrays["mu"], arrays["sigma"]), path=path)
    if keys & {"mu_s", "sigma_s"}:
        result.spatial_mu, result.spatial_sigma = _moments(arrays["mu_s"], arrays["sigma_s"])
    if "features" in keys:
        result.features = arrays["features"].astype(np.float32)
        check_features("features", result.features)
        if result.features.shape[1:] != result.mu.shape:
            raise ValueError("features and mu have other dimensions")
    if "metadata" in keys:
        values = json.loads(arrays["metadata"].tobytes())
        result.metadata = convert(ReferenceMetadata, values, "metadata")
    if "arr_0" in keys:
        with npz.open_images(path) as (_, shape):
            result.num_images = shape[0]
    return result


def _moments(mu: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in float64, verified."""
    mu, sigma = np.asarray(mu), np.asarray(sigma)
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise ValueError(f"mu is {mu.dtype} and sigma {sigma.dtype}, must be floats")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    check_gaussian("reference", mu, sigma)
    return mu, sigma


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays in plain containers and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy.core", "numpy._core"), name:
            case "numpy", ("ndarray" | "dtype"):
                return getattr(np, name)
            case "numpy._core.multiarray", "_reconstruct":
                return np.ndarray.__reduce__(np.empty(0))[0]
            case "numpy._core.numeric", "_frombuffer":
                # A new function each time: a pickle can set attributes of what it looks up.
                return lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(
                    shape, order=order
                )
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _read_pickle(path: Path) -> ReferenceStatistics:
    """EDM's pickle of mu and sigma, or EDM2's, whose `fid` is such a pair."""
    with open(path, "rb") as file:
        content = _ArrayUnpickler(file).load()
    pair = content if "mu" in content else content["fid"]
    metadata = convert(ReferenceMetadata, {"num_images": content.get("num_images")}, "")
    return ReferenceStatistics(*_moments(pair["mu"], pair["sigma"]), metadata=metadata, path=path)
