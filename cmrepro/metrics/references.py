"""Reference statistics: built from real images, loaded, held against a protocol."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from cmrepro.files import sha256
from cmrepro.metrics.extractors import (
    BATCH_SIZE,
    ImageBatches,
    extract,
    load_extractor,
)
from cmrepro.metrics.frechet import StreamingMoments
from cmrepro.metrics.reference_files import (
    UNKNOWN,
    ReferenceMetadata,
    StoredStatistics,
    read_statistics,
)
from cmrepro.metrics.reference_registry import fetch_reference, registered_references
from cmrepro.settings import MANIFOLD_METRICS, Protocol

# Batches of features between two updates of the moments: 33 MB at 2,048 dimensions.
CHUNK_BATCHES = 64


@dataclass(eq=False)
class ReferenceStatistics(StoredStatistics):
    """Statistics of real images, and some of their features or the images themselves.

    Attributes:
        path: The file that they were read from; None where they were just built.
    """

    path: Path | None = None

    @property
    def name(self) -> str:
        """Name of the file without its suffix, or of the data set."""
        return self.path.stem if self.path else self.metadata.name

    @functools.cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the file, hexadecimal; None where they were just built."""
        return sha256(self.path) if self.path else None

    @classmethod
    def load(cls, path: str | Path, *, entry: str = "fid") -> Self:
        """Read and verify a file (`read_statistics` says which, and what it raises)."""
        return cls(**vars(read_statistics(path, entry=entry)), path=Path(path))

    def require_protocol(self, protocol: Protocol, dataset: str | None = None) -> None:
        """Refuse to serve another protocol or data set than these statistics were made for.

        Args:
            protocol: What is to be scored.
            dataset: What the sample set's model was trained on, e.g. "cifar10-train", where that
                is known.

        Raises:
            ValueError: Names the first setting that differs, with both values, or what a metric
                needs and is not there. What the file leaves unknown is taken on trust, but for
                the dimension.
        """
        extractor, mine = protocol.extractor, self.metadata
        pairs = [
            ("dimension", len(self.mu), extractor.feature_dim),
            ("extractor", mine.extractor, extractor.name),
            ("image_size", mine.image_size, extractor.image_size),
            ("resize", mine.resize, extractor.resize),
            ("protocol", mine.protocol, protocol.name),
            ("protocol version", mine.protocol_version, protocol.version),
            ("data set", mine.name, protocol.dataset or mine.name),
        ]
        if "sfid" in protocol.metrics and self.spatial_mu is not None:
            pairs.append(("spatial dimension", len(self.spatial_mu), extractor.spatial_dim))
        for setting, got, asked in pairs:
            if got not in (None, UNKNOWN, asked):
                raise ValueError(
                    f"reference {self.name} was made with {setting} {got!r}, protocol "
                    f"{protocol.name!r} asks for {asked!r}; build it again for this protocol"
                )
        if dataset is not None and mine.name not in (UNKNOWN, dataset):
            raise ValueError(
                f"reference {self.name} was made with data set {mine.name!r}, the images come "
                f"from a model of {dataset!r}; name another reference"
            )
        of_features = [m for m in protocol.metrics if m in ("kid", *MANIFOLD_METRICS)]
        if of_features and self.features is None and self.images is None:
            raise ValueError(self._lacking("features", of_features))
        if "sfid" in protocol.metrics and self.spatial_mu is None:
            raise ValueError(self._lacking("spatial statistics", ["sfid"]))

    def warnings(self, protocol: Protocol) -> list[str]:
        """Why scores against these statistics must be read with care, one line each."""
        warnings = []
        if UNKNOWN in (self.metadata.extractor, self.metadata.dataset):
            warnings.append(
                f"reference {self.name} does not say what it was made of: its extractor, resize "
                "and data set are taken on trust"
            )
        stored = self.features if self.features is not None else ()
        count = self.images.num_images if self.images else len(stored)
        expected = protocol.stored_features and protocol.stored_features.num_images
        if count and expected not in (None, count):
            warnings.append(
                f"features of {count:,} real images where protocol {protocol.name} has "
                f"{expected:,}: KID, precision and recall depend on it"
            )
        return warnings

    def spatial_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (S,) and covariance (S, S) of the spatial features, where a protocol has sfid."""
        assert self.spatial_mu is not None and self.spatial_sigma is not None
        return self.spatial_mu, self.spatial_sigma

    def real_features(self, protocol: Protocol, device: str = "cpu") -> np.ndarray:
        """Features of real images, float32 (M, D); those of stored images are extracted once.

        Args:
            protocol: One that these statistics serve; gives the extractor.
            device: Where it runs.
        """
        if self.features is None:
            assert self.images is not None  # require_protocol
            extractor = load_extractor(protocol.extractor, device)
            batches = _checked_batches(self.images)
            features = [extract(batch, extractor).features for batch in batches]
            self.features = np.concatenate(features)
        return self.features

    def _lacking(self, part: str, metrics: Sequence[str]) -> str:
        return (
            f"reference {self.name} holds no {part} for {', '.join(metrics)}; build one from the "
            "data set with `cmrepro references build`, or leave these metrics out"
        )


def build_reference(
    images: ImageBatches,
    protocol: Protocol,
    *,
    dataset: str,
    split: str,
    device: str = "cpu",
    progress: bool = False,
) -> ReferenceStatistics:
    """Reference statistics of real images, read once, in memory that does not grow with N.

    Args:
        images: Source of uint8 batches (B, H, W, 3), RGB, in the order of the data set.
        protocol: Gives the extractor, the metrics and the choice of the M stored images.
        dataset: Name of the data set.
        split: Its part.
        device: Where the extractor runs.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the images are not uint8 (N, H, W, 3), or fewer than the protocol stores.
    """
    count = images.num_images
    chosen = _chosen(protocol, count)
    extractor = load_extractor(protocol.extractor, device)
    moments = StreamingMoments(protocol.extractor.feature_dim)
    spatial = StreamingMoments(protocol.extractor.spatial_dim)
    with_spatial = "sfid" in protocol.metrics
    stored = np.empty((chosen.sum(), protocol.extractor.feature_dim), np.float32)
    digest, position, filled = hashlib.sha256(), 0, 0
    batches = _checked_batches(images, progress)
    while chunk := list(itertools.islice(batches, CHUNK_BATCHES)):
        parts = [extract(batch, extractor) for batch in chunk]
        features = np.concatenate([part.features for part in parts])
        moments.update(features)
        if with_spatial:
            spatial.update(np.concatenate([part.spatial for part in parts]))
        kept = features[chosen[position : position + len(features)]]
        stored[filled : filled + len(kept)] = kept.astype(np.float16)
        filled += len(kept)
        position += len(features)
        for batch in chunk:
            digest.update(batch.tobytes())
    mu, sigma = _as_stored(moments)
    spatial_mu, spatial_sigma = _as_stored(spatial) if with_spatial else (None, None)
    return ReferenceStatistics(
        mu=mu,
        sigma=sigma,
        features=stored if len(stored) else None,
        metadata=ReferenceMetadata(
            dataset=dataset,
            split=split,
            num_images=count,
            images_sha256=digest.hexdigest(),
            features_seed=protocol.stored_features.seed if protocol.stored_features else None,
            protocol=protocol.name,
            protocol_version=protocol.version,
            extractor=protocol.extractor.name,
            image_size=protocol.extractor.image_size,
            resize=protocol.extractor.resize,
        ),
        spatial_mu=spatial_mu,
        spatial_sigma=spatial_sigma,
    )


def _chosen(protocol: Protocol, count: int) -> np.ndarray:
    """Which of `count` images are the M whose features are stored, bool (count,).

    Raises:
        ValueError: If there are fewer than M.
    """
    stored = protocol.stored_features
    num_features = stored.num_images if stored else 0
    if count < num_features:
        raise ValueError(
            f"{count} images, protocol {protocol.name!r} stores features of {num_features}; "
            "give the whole data set"
        )
    order = np.random.RandomState(stored.seed if stored else 0).permutation(count)
    chosen = np.zeros(count, dtype=bool)
    chosen[order[:num_features]] = True
    return chosen


def _as_stored(moments: StreamingMoments) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, the latter as exact as the file keeps it."""
    mu, sigma = moments.mean_and_covariance()
    return mu, sigma.astype(np.float32).astype(np.float64)


def _checked_batches(images: ImageBatches, progress: bool = False) -> Iterator[np.ndarray]:
    """Batches (B, H, W, 3) of images, as many as announced.

    Raises:
        ValueError: If they are not uint8 (B, H, W, 3), or of another number.
    """
    count, given = images.num_images, 0
    with tqdm(total=count, desc="reference", unit="image", disable=not progress) as bar:
        for batch in images.batches(BATCH_SIZE):
            given += len(batch)
            if given > count:
                break
            yield batch
            bar.update(len(batch))
    if given != count:
        raise ValueError(f"{count} images announced, {given} given; open the images again")


def load_reference(protocol: Protocol, source: str | Path | None = None) -> ReferenceStatistics:
    """The reference statistics for a protocol.

    Args:
        protocol: What they must serve.
        source: Their name, or a file; the protocol's own by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name is unknown, the file cannot be had or is not valid, or it was made
            for another protocol.
    """
    chosen = protocol.reference if source is None else source
    is_file = Path(chosen).suffix in (".npz", ".pkl")
    path = Path(chosen) if is_file else fetch_reference(str(chosen))
    entry = "fd_dinov2" if protocol.extractor.network == "dinov2" else "fid"
    reference = ReferenceStatistics.load(path, entry=entry)
    registered = None if is_file else registered_references().get(str(chosen))
    if registered is not None:
        reference.metadata = _with_documented(reference, registered.metadata)
    reference.require_protocol(protocol)
    return reference


def _with_documented(
    reference: ReferenceStatistics, documented: ReferenceMetadata
) -> ReferenceMetadata:
    """A file's metadata, completed by what is documented about it.

    Raises:
        ValueError: If the two contradict each other.
    """
    added = {}
    for key, value in vars(documented).items():
        mine = getattr(reference.metadata, key)
        if mine in (None, UNKNOWN):
            added[key] = value
        elif value not in (None, UNKNOWN, mine):
            raise ValueError(
                f"{reference.path} has {key} {mine!r}, {reference.name} has {value!r}; delete the "
                "file and build or fetch it again"
            )
    return replace(reference.metadata, **added)
