"""Reference statistics: what a protocol keeps of the real images.

The file is an .npz with `mu` (D,) float64 and `sigma` (D, D) float32 (the keys that TTUR, EDM,
ADM and clean-fid read), `features` (M, D) float16 for KID, precision and recall, and `metadata`, a
JSON object as uint8. Rounding sigma to float32 moves the Fréchet distance by less than 1e-9
relative (2,000 test images against 50,000 training images); `build_reference` rounds before
anything is scored, so a score does not change when the reference goes through a file.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cmrepro.files import array_sha256, atomic_path
from cmrepro.metrics.definitions import StreamingMoments, check_features, check_gaussian
from cmrepro.metrics.features import (
    BATCH_SIZE,
    check_images,
    extract,
    load_extractor,
)
from cmrepro.metrics.protocols import Protocol
from cmrepro.names import unknown

# Images extracted between two updates of the moments: whole batches, 20 MB of features.
CHUNK_IMAGES = 64 * BATCH_SIZE


@dataclass(frozen=True)
class ReferenceMetadata:
    """Where reference statistics come from.

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

    dataset: str
    split: str
    num_images: int
    images_sha256: str
    features_seed: int
    protocol: str
    protocol_version: int
    extractor: str
    image_size: int
    resize: str


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics and some features of real images.

    Attributes:
        mu: Mean (D,), float64.
        sigma: Covariance (D, D) with ddof = 1, float64, exact in float32.
        features: Features of M images, (M, D), float32, exact in float16.
        metadata: Where they come from.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray
    metadata: ReferenceMetadata

    def require_protocol(self, protocol: Protocol) -> None:
        """Refuse to serve another protocol than the one these statistics were made for.

        Raises:
            ValueError: Names the first setting that differs, with both values.
        """
        pairs = {
            "extractor": (self.metadata.extractor, protocol.extractor),
            "image_size": (self.metadata.image_size, protocol.image_size),
            "resize": (self.metadata.resize, protocol.resize),
            "protocol": (self.metadata.protocol, protocol.name),
            "protocol version": (self.metadata.protocol_version, protocol.version),
        }
        for setting, (mine, asked) in pairs.items():
            if mine != asked:
                raise ValueError(
                    f"reference {self.metadata.dataset}-{self.metadata.split} was made with "
                    f"{setting} {mine!r}, protocol {protocol.name!r} asks for {asked!r}; "
                    "build it again for this protocol"
                )

    def save(self, path: str | Path) -> None:
        """Write the .npz, complete or not at all.

        Args:
            path: Final name, ending in .npz.

        Raises:
            ValueError: If the folder cannot be written.
        """
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                mu=self.mu,
                sigma=self.sigma.astype(np.float32),
                features=self.features.astype(np.float16),
                metadata=np.frombuffer(json.dumps(asdict(self.metadata)).encode(), np.uint8),
            )

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Read and verify the .npz.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, lacks a part, or holds values that cannot be
                statistics (shapes, symmetry, finiteness).
        """
        arrays = _read_npz(Path(path))
        missing = sorted({"mu", "sigma", "features", "metadata"} - arrays.keys())
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}; build it with `cmrepro references build`"
            )
        mu, sigma = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        features = arrays["features"].astype(np.float32)
        check_gaussian(str(path), mu, sigma)
        check_features(f"{path}: features", features)
        if features.shape[1] != len(mu):
            raise ValueError(
                f"{path}: features have {features.shape[1]} dimensions and mu {len(mu)}, "
                "must agree; build it again"
            )
        return cls(mu, sigma, features, _parse_metadata(path, arrays["metadata"].tobytes()))


def build_reference(
    images: np.ndarray,
    protocol: Protocol,
    *,
    dataset: str,
    split: str,
    device: str = "cpu",
    progress: bool = False,
) -> ReferenceStatistics:
    """Reference statistics of real images.

    Args:
        images: uint8 (N, H, W, 3), RGB, in the order of the data set.
        protocol: Gives the extractor and the choice of the M stored images.
        dataset: Name of the data set.
        split: Its part.
        device: Where the extractor runs.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the images are not uint8 (N, H, W, 3), or fewer than the protocol stores.
    """
    check_images(images)
    if len(images) < protocol.reference_features:
        raise ValueError(
            f"{len(images)} images, protocol {protocol.name!r} stores features of "
            f"{protocol.reference_features}; give the whole data set"
        )
    extractor = load_extractor(protocol.extractor, device)
    moments = StreamingMoments(extractor.feature_dim)
    order = np.random.RandomState(protocol.reference_seed).permutation(len(images))
    chosen = np.zeros(len(images), dtype=bool)
    chosen[order[: protocol.reference_features]] = True
    stored = []
    starts = range(0, len(images), CHUNK_IMAGES)
    for start in tqdm(starts, desc="reference", unit="chunk", disable=not progress):
        stop = start + CHUNK_IMAGES
        features = extract(images[start:stop], extractor).features
        moments.update(features)
        stored.append(features[chosen[start:stop]].astype(np.float16))
    mu, sigma = moments.mean_and_covariance()
    return ReferenceStatistics(
        mu=mu,
        sigma=sigma.astype(np.float32).astype(np.float64),
        features=np.concatenate(stored).astype(np.float32),
        metadata=ReferenceMetadata(
            dataset=dataset,
            split=split,
            num_images=len(images),
            images_sha256=array_sha256(images),
            features_seed=protocol.reference_seed,
            protocol=protocol.name,
            protocol_version=protocol.version,
            extractor=protocol.extractor,
            image_size=protocol.image_size,
            resize=protocol.resize,
        ),
    )


def bundled_references() -> dict[str, Path]:
    """The reference statistics that come with the package: name -> path, sorted."""
    folder = Path(str(resources.files(__package__).joinpath("bundled")))
    return {path.stem: path for path in sorted(folder.glob("*.npz"))}


def bundled_reference(name: str) -> Path:
    """The path of reference statistics that come with the package.

    Raises:
        ValueError: If the name is unknown.
    """
    known = bundled_references()
    if name not in known:
        raise ValueError(unknown("reference", name, known))
    return known[name]


def load_reference(protocol: Protocol, path: str | Path | None = None) -> ReferenceStatistics:
    """The reference statistics for a protocol: a file's, or those that come with the package.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not valid, or was made for another protocol.
    """
    chosen = bundled_reference(protocol.reference) if path is None else path
    reference = ReferenceStatistics.load(chosen)
    reference.require_protocol(protocol)
    return reference


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz."""
    if not path.is_file():
        raise FileNotFoundError(f"no reference statistics at {path}; check the path")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable .npz ({error}); build or fetch it again"
        ) from error


def _parse_metadata(path: str | Path, text: bytes) -> ReferenceMetadata:
    """Metadata from its JSON, with exactly the known keys and types."""
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: metadata is not JSON ({error}); build it again") from error
    types = {field.name: str(field.type) for field in fields(ReferenceMetadata)}
    got = {key: type(value).__name__ for key, value in dict(values).items()}
    if got != types:
        wrong = sorted(dict(got.items() ^ types.items()))
        raise ValueError(
            f"{path}: metadata is unknown, missing or of a wrong type at {', '.join(wrong)}; "
            "build it again with this version"
        )
    return ReferenceMetadata(**values)
