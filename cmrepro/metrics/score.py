"""A sample set scored under one protocol or several, in one pass over its images.

Protocols that share an extractor and a number of images share its features. What is kept of the
features is what the metrics need: mean and covariance of all, the features themselves only for
KID and the manifold metrics, logits for IS. Under `torchrun` every process extracts its share of
the images; process 0 brings the parts together and is the only one that gets scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from cmrepro.distributed import gather, rank_and_world_size, shard
from cmrepro.metrics.extractors import (
    BATCH_SIZE,
    Features,
    ImageBatches,
    extract,
    load_extractor,
)
from cmrepro.metrics.frechet import (
    StreamingMoments,
    check_features,
    fid_infinity,
    fid_of_parts,
    frechet_distance,
)
from cmrepro.metrics.references import ReferenceStatistics
from cmrepro.metrics.scores import Estimate, inception_score, kernel_distance, manifold_scores
from cmrepro.records import Uncertainty
from cmrepro.settings import MANIFOLD_METRICS, Metric, Protocol
from cmrepro.settings import Extractor as ExtractorSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One protocol that a sample set is to be scored under.

    Attributes:
        protocol: How to score.
        reference: Statistics of real images, made for this protocol.
        num_images: Score exactly the first so many; what the protocol asks for by default.
    """

    protocol: Protocol
    reference: ReferenceStatistics
    num_images: int | None = None


@dataclass(frozen=True)
class Scores:
    """What a sample set scores under a protocol.

    Attributes:
        values: By metric.
        num_images: Number of images scored.
        warnings: One line for each reason why a value must be read with care.
        features_sha256: SHA-256 of the features scored, float32 (N, D), hexadecimal.
        images_sha256: SHA-256 of the images scored, uint8 (N, H, W, 3).
        uncertainty: Where it was requested.
    """

    values: dict[str, float]
    num_images: int
    warnings: list[str]
    features_sha256: str
    images_sha256: str
    uncertainty: Uncertainty | None = None


class _Kept:
    """What is kept of one extractor's features of the first `num_images` images.

    Attributes:
        moments: Mean and covariance of the features.
        spatial: Those of the spatial features, where sFID needs them.
        features: The features themselves, where a metric needs them.
        logits: Logits, where IS needs them.
        digest: Of the features seen.
    """

    def __init__(
        self, settings: ExtractorSettings, num_images: int, share: range, parts: set[str]
    ) -> None:
        """Nothing yet of those images whose numbers lie in `share`."""
        rows = len(range(share.start, min(share.stop, num_images)))
        self.moments = StreamingMoments(settings.feature_dim)
        self.spatial = StreamingMoments(settings.spatial_dim) if "spatial" in parts else None
        self.features = (
            np.empty((rows, settings.feature_dim), np.float32) if "features" in parts else None
        )
        self.logits = (
            np.empty((rows, settings.num_logits), np.float32) if "logits" in parts else None
        )
        self.digest = hashlib.sha256()
        self._rows, self._filled = rows, 0

    def add(self, batch: Features) -> None:
        """Take the next images, as far as they belong to the first `num_images`."""
        count = min(len(batch.features), self._rows - self._filled)
        if not count:
            return
        place = slice(self._filled, self._filled + count)
        features = batch.features[:count]
        self.moments.update(features)
        self.digest.update(features.tobytes())
        if self.features is not None:
            self.features[place] = features
        if self.logits is not None:
            assert batch.logits is not None  # a protocol with IS names an extractor with logits
            check_features("logits", batch.logits)
            self.logits[place] = batch.logits[:count]
        if self.spatial is not None:
            assert batch.spatial is not None
            self.spatial.update(batch.spatial[:count])
        self._filled += count

    def join(self, other: dict[str, Any]) -> None:
        """Append what another process kept of the images that follow (its `vars`)."""
        self.moments.merge(other["moments"])
        if self.spatial is not None:
            self.spatial.merge(other["spatial"])
        if self.features is not None:
            self.features = np.concatenate([self.features, other["features"]])
            self.digest.update(other["features"].tobytes())
        if self.logits is not None:
            self.logits = np.concatenate([self.logits, other["logits"]])


def score(
    images: ImageBatches,
    tasks: Sequence[Task],
    *,
    device: str = "cpu",
    intervals: bool = False,
    progress: bool = False,
) -> list[Scores]:
    """Score generated images under every protocol of `tasks`, reading them once.

    Args:
        images: Source of uint8 batches (B, H, W, 3), RGB, 0-255.
        tasks: Protocols with their references.
        device: Where extractors run.
        intervals: Give 95 % intervals and measure FID against the number of images.
        progress: Whether to show a progress bar.

    Returns:
        One entry a task; empty in every process of `torchrun` but the first.

    Raises:
        ValueError: If there are fewer images than asked for, the images are not uint8
            (B, H, W, 3), or a reference is for another protocol or lacks what a metric needs.
    """
    counts = [num_scored(images.num_images, task.protocol, task.num_images) for task in tasks]
    for task in tasks:
        task.reference.require_protocol(task.protocol)
    rank, world = rank_and_world_size()
    own = range(max(counts))[shard(max(counts), rank, world)]
    parts: dict[tuple[ExtractorSettings, int], set[str]] = {}
    for task, count in zip(tasks, counts, strict=True):
        for settings, needed in _needed_parts(task.protocol, intervals, world).items():
            parts.setdefault((settings, count), set()).update(needed)
    extractors = {settings: load_extractor(settings, device) for settings, _ in parts}
    kept = {key: _Kept(*key, own, needed) for key, needed in parts.items()}
    digests = {count: hashlib.sha256() for count in counts}

    def digest(batch: np.ndarray, position: int) -> None:
        for count, sha256 in digests.items():
            sha256.update(batch[: max(count - position, 0)].tobytes())

    position = own.start
    with tqdm(total=len(own), desc="features", unit="image", disable=not progress) as bar:
        for batch in images.batches(BATCH_SIZE, own.start, own.stop):
            for settings, extractor in extractors.items():
                features = extract(batch, extractor)
                for (needing, _), store in kept.items():
                    if needing == settings:
                        store.add(features)
            digest(batch, position)
            position += len(batch)
            bar.update(len(batch))
    _join_processes(kept)
    if rank:
        return []
    for batch in images.batches(BATCH_SIZE, position, max(counts)):  # of the other processes
        digest(batch, position)
        position += len(batch)
    return [
        _scores(task, count, kept, digests[count].hexdigest(), intervals, device)
        for task, count in zip(tasks, counts, strict=True)
    ]


def _join_processes(kept: dict[tuple[ExtractorSettings, int], _Kept]) -> None:
    """Bring together in the first process what all have kept."""
    own = [
        {name: value for name, value in vars(store).items() if name != "digest"}
        for store in kept.values()
    ]
    for others in gather(own)[1:]:
        for store, other in zip(kept.values(), others, strict=True):
            store.join(other)


def _needed_parts(
    protocol: Protocol, intervals: bool, world: int
) -> dict[ExtractorSettings, set[str]]:
    """What must be kept of each extractor's features."""
    metrics = set(protocol.metrics)
    parts: dict[ExtractorSettings, set[str]] = {protocol.extractor: set()}
    # The checksum of all features in their order is taken from the features themselves where
    # several processes share them.
    if metrics & {"kid", *MANIFOLD_METRICS} or intervals or world > 1:
        parts[protocol.extractor].add("features")
    if "sfid" in metrics:
        parts[protocol.extractor].add("spatial")
    if "is" in metrics:
        parts.setdefault(protocol.logits_extractor, set()).add("logits")
    return parts


def _scores(
    task: Task,
    count: int,
    kept: dict[tuple[ExtractorSettings, int], _Kept],
    images_sha256: str,
    intervals: bool,
    device: str,
) -> Scores:
    """All metrics of a task from what was kept."""
    protocol, reference = task.protocol, task.reference
    store = kept[protocol.extractor, count]
    values: dict[str, float] = {}
    estimates: dict[Metric, Estimate] = {}
    uncertainty = Uncertainty() if intervals else None
    if "fid" in protocol.metrics:
        mu, sigma = reference.mu, reference.sigma
        values["fid"] = frechet_distance(*store.moments.mean_and_covariance(), mu, sigma)
        if uncertainty:
            parts = fid_of_parts(_given(store.features), mu, sigma)
            uncertainty = uncertainty.replace(
                fid_by_num_images=parts, fid_infinity=fid_infinity(parts)
            )
    if "sfid" in protocol.metrics:
        spatial = _given(store.spatial).mean_and_covariance()
        values["sfid"] = frechet_distance(*spatial, *reference.spatial_moments())
    if "is" in protocol.metrics:
        logits = _given(kept[protocol.logits_extractor, count].logits)
        estimates["is"] = inception_score(logits, _given(protocol.inception_score))
    if set(protocol.metrics) & {"kid", *MANIFOLD_METRICS}:
        sets = _given(store.features), reference.real_features(protocol, device)
    if "kid" in protocol.metrics:
        kernel = _given(protocol.kernel)
        kernel = kernel.replace(subset_size=min(kernel.subset_size, count))
        estimates["kid"] = kernel_distance(*sets, kernel)
    if set(protocol.metrics) & set(MANIFOLD_METRICS):
        neighborhood = _given(protocol.manifold).neighborhood
        manifolds = manifold_scores(*sets, neighborhood=neighborhood, device=device)
        estimates |= manifolds.estimates
    values |= {metric: estimate.value for metric, estimate in estimates.items()}
    if uncertainty:
        uncertainty = uncertainty.replace(
            intervals={m: e.interval for m, e in estimates.items() if m in protocol.metrics}
        )
    return Scores(
        values={metric: values[metric] for metric in protocol.metrics},
        num_images=count,
        warnings=[*_warnings(count, protocol), *reference.warnings(protocol)],
        features_sha256=store.digest.hexdigest(),
        images_sha256=images_sha256,
        uncertainty=uncertainty,
    )


def _given(value: T | None) -> T:
    """A setting, or a part kept, that the protocol's metrics need and therefore is there."""
    assert value is not None
    return value


def num_scored(available: int, protocol: Protocol, asked: int | None = None) -> int:
    """How many images are scored.

    Args:
        available: Images of the set.
        protocol: Asks for some by default.
        asked: The first so many instead.

    Raises:
        ValueError: The set has fewer, or the metrics need more.
    """
    count = protocol.num_images if asked is None else asked
    parts, manifold = protocol.inception_score, protocol.manifold
    least = max((parts and parts.num_splits) or 2, manifold.neighborhood + 1 if manifold else 2)
    if available < least:
        raise ValueError(
            f"got {available} images, protocol '{protocol.name}' needs at least {least} and asks "
            f"for {protocol.num_images}; sample more"
        )
    if not least <= count <= available:
        asking = f"protocol '{protocol.name}' asks for" if asked is None else "--num-images is"
        raise ValueError(
            f"got {available} images, {asking} {count}; allowed are {least} to "
            f"{available} (--num-images), or sample more"
        )
    return count


def _warnings(count: int, protocol: Protocol) -> list[str]:
    """Why scores of `count` images must be read with care."""
    warnings = []
    if count != protocol.num_images:
        warnings.append(
            f"{count:,} images where protocol {protocol.name} has {protocol.num_images:,}: "
            "FID, IS, precision and recall depend on the number of images"
        )
    if count <= protocol.extractor.feature_dim:
        warnings.append(
            f"{count:,} images for {protocol.extractor.feature_dim:,} dimensions: "
            "the covariance is singular and the FID biased"
        )
    if protocol.kernel and count < protocol.kernel.subset_size:
        warnings.append(
            f"KID from subsets of {count:,} images where protocol {protocol.name} has "
            f"{protocol.kernel.subset_size:,}"
        )
    return warnings
