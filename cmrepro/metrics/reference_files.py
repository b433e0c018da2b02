"""Files of reference statistics, and the protocols that they serve.

Our file is an .npz with `mu` (D,) and `sigma` (D, D) in float64 (the keys that TTUR, EDM, ADM and
clean-fid read), `mu_s` and `sigma_s` likewise of spatial features for sFID (ADM's keys),
`features` (M, D) float16 for KID and the manifold metrics, and `metadata`, a JSON object as uint8.
A singular sigma needs float64: float32 moves the FID of 1,000 images against themselves from 0 to
-7e-4; the bundled file, of full rank, has float32. Files of TTUR, EDM and clean-fid (.npz of `mu`
and `sigma`), EDM and EDM2 (.pkl), and ADM (.npz with `mu_s`, `sigma_s` and 10,000 images `arr_0`),
which have no metadata, are read too. A file's format is known by its first bytes.
"""

import functools
import hashlib
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmrepro.data.sources import SampleSet
from cmrepro.files import atomic_path, cache_folder, first_bytes, one_line_errors, sha256
from cmrepro.metrics.extractors import BATCH_SIZE, extract, load_extractor
from cmrepro.metrics.frechet import check_features, check_gaussian
from cmrepro.schema import convert, to_builtins, to_json
from cmrepro.settings import MANIFOLD_METRICS, Protocol, Reference, ReferenceMetadata

FEATURE_METRICS = {"kid", *MANIFOLD_METRICS}  # that need features, not moments alone

_KEYS = {"mu", "sigma", "mu_s", "sigma_s", "features", "metadata"}
BUILD = "`cmrepro references build`"
_PICKLED = {  # what pickled arrays are made of
    *("numpy.ndarray", "numpy.dtype", "numpy._core.numeric._frombuffer"),
    *("numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar"),
    *("_codecs.encode", "collections.OrderedDict"),
}


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

    def real_features(self, protocol: Protocol, device: str = "cpu") -> np.ndarray:
        """Features of M real images; those of images in the file are extracted once and cached."""
        if self.features is None:
            assert self.path is not None  # require_protocol: features, or a file with images
            key = f"{self.sha256} {to_json(protocol.extractor)}".encode()
            digest = hashlib.sha256(key).hexdigest()[:16]
            cached = cache_folder() / "features" / f"{self.name}-{digest}.npy"
            if not cached.is_file():
                network = load_extractor(protocol.extractor, device)
                batches = SampleSet(self.path, self.name).batches(BATCH_SIZE)
                parts = [extract(batch, network).features for batch in batches]
                with atomic_path(cached) as temporary:
                    np.save(temporary, np.concatenate(parts))
            self.features = np.load(cached)
        return self.features


def write_statistics(path: Path, statistics: ReferenceStatistics) -> None:
    """Write our .npz."""
    arrays: dict[str, Any] = {"mu": statistics.mu, "sigma": statistics.sigma}
    if statistics.features is not None:
        arrays["features"] = statistics.features.astype(np.float16)
    if statistics.spatial_mu is not None and statistics.spatial_sigma is not None:
        arrays["mu_s"] = statistics.spatial_mu
        arrays["sigma_s"] = statistics.spatial_sigma
    text = json.dumps(to_builtins(statistics.metadata)).encode()
    arrays["metadata"] = np.frombuffer(text, np.uint8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_statistics(path: Path) -> ReferenceStatistics:
    """Read and verify a file of reference statistics; nothing in a pickle is executed."""
    if path.is_dir():
        allowed = f"an .npz or .pkl of mu and sigma; {BUILD} makes one of images"
        raise ValueError(f"{path} is a folder, allowed is {allowed}")
    start = first_bytes(path)
    fault, fix = "does not hold reference statistics", f"{BUILD} makes them of images"
    with one_line_errors(path, fault, f"{fix}, or fetch it again"):
        if start.startswith(b"PK"):
            return _read_npz(path)
        if start[0] in b"\x80(}":  # pickled dicts of protocols 2 and later, 0, and 1
            return _read_pickle(path)
        raise ValueError("it is neither an .npz nor a pickle")


def _read_npz(path: Path) -> ReferenceStatistics:
    with np.load(path, allow_pickle=False) as file:
        keys = set(file.files)
        if len(keys) < len(file.files):
            raise ValueError("it holds an array twice")
        for pair in ({"mu", "sigma"}, keys & {"mu_s", "sigma_s"} and {"mu_s", "sigma_s"}):
            if not pair <= keys:
                got = ", ".join(sorted(keys)[:5]) or "nothing"
                raise ValueError(f"it holds {got}, must hold {' and '.join(sorted(pair))}")
        arrays = {key: file[key] for key in keys & _KEYS}
    result = ReferenceStatistics(*_moments(arrays["mu"], arrays["sigma"]), path=path)
    if "mu_s" in keys:
        result.spatial_mu, result.spatial_sigma = _moments(arrays["mu_s"], arrays["sigma_s"])
    if "features" in keys:
        if arrays["features"].dtype.kind != "f":
            raise ValueError(f"features are {arrays['features'].dtype}, must be floats")
        result.features = arrays["features"].astype(np.float32)
        check_features(result.features)
        if result.features.shape[1:] != result.mu.shape:
            raise ValueError("features and mu have other dimensions")
    if "metadata" in keys:
        values = json.loads(arrays["metadata"].tobytes())
        result.metadata = convert(ReferenceMetadata, values, "metadata")
    if "arr_0" in keys:
        result.num_images = SampleSet(path, path.stem).num_images
    return result


def _moments(mu: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in float64, verified."""
    for name, array in (("mu", mu), ("sigma", sigma)):
        got: Any = getattr(array, "dtype", type(array).__name__)
        if not isinstance(array, np.ndarray) or got.kind != "f" or got.itemsize < 4:
            raise ValueError(f"{name} is {got}, must be an array of float32 or float64")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    check_gaussian(mu, sigma)
    return mu, sigma


class _ArrayUnpickler(pickle._Unpickler):
    """Rebuilds numpy arrays in plain containers and refuses to look up anything else.

    The unpickler of the standard library that is written in Python: the one in C fills its table
    of objects up to any number in the file, in gigabytes of memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # before numpy 2
        if f"{module}.{name}" not in _PICKLED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> ReferenceStatistics:
    """EDM's pickle of mu and sigma, or EDM2's, whose `fid` is such a pair."""
    # latin1: Python 2 wrote bytes as text.
    content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    pair = content if "mu" in content else content["fid"]
    count = content.get("num_images")
    metadata = ReferenceMetadata(num_images=None if count is None else int(count))
    return ReferenceStatistics(*_moments(pair["mu"], pair["sigma"]), metadata=metadata, path=path)
