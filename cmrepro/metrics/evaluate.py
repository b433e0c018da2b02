"""Scores of a sample set under one protocol or several, in one pass over its images.

Protocols that share an extractor and a number of images share its features. Under `torchrun`
rank 0 alone gets scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmrepro.metrics.accumulate import Accumulator, accumulate
from cmrepro.metrics.extractors import ImageBatches
from cmrepro.metrics.frechet import fid_infinity, fid_of_parts, frechet_distance
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.metrics.scores import Estimate, inception_score, kernel_distance, manifold_scores
from cmrepro.records import Uncertainty
from cmrepro.settings import MANIFOLD_METRICS, Extractor, Metric, Protocol


@dataclass(frozen=True)
class Task:
    """A protocol that a sample set is scored under.

    Attributes:
        protocol: How to score.
        reference: Statistics of real images, made for this protocol.
        num_images: Score the first N images; by default the number that the protocol asks for.
    """

    protocol: Protocol
    reference: ReferenceStatistics
    num_images: int | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of a sample set under a protocol.

    Attributes:
        values: Value by metric.
        num_images: Number of images scored.
        warnings: Limits of the values' meaning, one line each.
        features_sha256: SHA-256 of the features scored, float32 (N, D), hexadecimal.
        images_sha256: SHA-256 of the images scored, uint8 (N, H, W, 3).
        set_sha256: SHA-256 of all images of the set, where `checksum_all` was requested.
        uncertainty: Intervals, where they were requested.
    """

    values: dict[Metric, float]
    num_images: int
    warnings: list[str]
    features_sha256: str
    images_sha256: str
    set_sha256: str | None = None
    uncertainty: Uncertainty | None = None


def score(
    images: ImageBatches,
    tasks: Sequence[Task],
    *,
    device: str = "cpu",
    intervals: bool = False,
    checksum_all: bool = False,
    progress: bool = False,
) -> list[Scores]:
    """Score generated images under the protocol of every task, reading them once.

    Args:
        images: Source of uint8 batches (B, H, W, 3), RGB, 0-255.
        tasks: Protocols with their references.
        device: Device of the extractors.
        intervals: Add 95 % intervals, and FID by number of images with its extrapolation.
        checksum_all: Read images behind the last one scored too, for `Scores.set_sha256`.
        progress: Show a progress bar.

    Returns:
        One entry a task; empty at other ranks than 0.

    Raises:
        ValueError: Too few images, images of another type, or a reference for another protocol.
    """
    counts = [num_scored(images.num_images, task.protocol, task.num_images) for task in tasks]
    parts: dict[tuple[Extractor, int], set[str]] = {}
    for task, count in zip(tasks, counts, strict=True):
        protocol = task.protocol
        task.reference.require_protocol(protocol)
        needed = parts.setdefault((protocol.extractor, count), set())
        if intervals or {"kid", *MANIFOLD_METRICS} & set(protocol.metrics):
            needed.add("features")
        if "sfid" in protocol.metrics:
            needed.add("spatial")
        if "is" in protocol.metrics:
            parts.setdefault((protocol.logits_extractor, count), set()).add("logits")
    accumulators = {
        (extractor, count): Accumulator(
            extractor,
            count,
            selected=np.full(count, "features" in needed),
            logits="logits" in needed,
            spatial="spatial" in needed,
        )
        for (extractor, count), needed in parts.items()
    }
    checksums = accumulate(
        images,
        list(accumulators.values()),
        checksum_of=[images.num_images] if checksum_all else [],
        device=device,
        progress=progress,
    )
    if not checksums:
        return []
    results = []
    for task, count in zip(tasks, counts, strict=True):
        generated = accumulators[task.protocol.extractor, count]
        classified = accumulators.get((task.protocol.logits_extractor, count))
        logits = classified.logits if classified else None
        values, uncertainty = _scores(task, generated, logits, intervals, device)
        results.append(
            Scores(
                values=values,
                num_images=count,
                warnings=_warnings(count, task.protocol) + task.reference.warnings(task.protocol),
                features_sha256=generated.digest.hexdigest(),
                images_sha256=checksums[count],
                set_sha256=checksums[images.num_images] if checksum_all else None,
                uncertainty=uncertainty if intervals else None,
            )
        )
    return results


def _scores(
    task: Task,
    generated: Accumulator,
    logits: NDArray[np.float32] | None,
    intervals: bool,
    device: str,
) -> tuple[dict[Metric, float], Uncertainty]:
    """Values and uncertainty of a task's metrics from the accumulated features."""
    protocol, reference, metrics = task.protocol, task.reference, task.protocol.metrics
    values: dict[Metric, float] = {}
    estimates: dict[Metric, Estimate] = {}
    fid_parts: dict[int, tuple[float, ...]] = {}
    if "fid" in metrics:
        real = reference.mu, reference.sigma
        values["fid"] = frechet_distance(*generated.moments.mean_and_covariance(), *real)
        if intervals:
            fid_parts = fid_of_parts(generated.features, *real)
    if "sfid" in metrics:
        assert generated.spatial is not None
        assert reference.spatial_mu is not None and reference.spatial_sigma is not None
        real = reference.spatial_mu, reference.spatial_sigma
        values["sfid"] = frechet_distance(*generated.spatial.mean_and_covariance(), *real)
    if "is" in metrics:
        assert protocol.inception_score and logits is not None
        estimates["is"] = inception_score(logits, protocol.inception_score)
    if {"kid", *MANIFOLD_METRICS} & set(metrics):
        features = generated.features, reference.real_features(protocol, device)
    if "kid" in metrics:
        assert protocol.kernel
        subset_size = min(protocol.kernel.subset_size, generated.num_images)
        kernel = protocol.kernel.replace(subset_size=subset_size)
        estimates["kid"] = kernel_distance(*features, kernel)
    if set(MANIFOLD_METRICS) & set(metrics):
        assert protocol.manifold
        neighborhood = protocol.manifold.neighborhood
        estimates |= manifold_scores(*features, neighborhood=neighborhood, device=device).estimates
    estimates = {metric: estimates[metric] for metric in metrics if metric in estimates}
    values |= {metric: estimate.value for metric, estimate in estimates.items()}
    uncertainty = Uncertainty(
        intervals={metric: estimate.interval for metric, estimate in estimates.items()},
        fid_by_num_images=fid_parts,
        fid_infinity=fid_infinity(fid_parts) if fid_parts else None,
    )
    return {metric: values[metric] for metric in metrics}, uncertainty


def num_scored(available: int, protocol: Protocol, requested: int | None = None) -> int:
    """Number of images that are scored: the first N requested, or the protocol's number.

    Raises:
        ValueError: The set has fewer, or the metrics need more.
    """
    count = protocol.num_images if requested is None else requested
    parts, manifold = protocol.inception_score, protocol.manifold
    least = max((parts and parts.num_splits) or 2, manifold.neighborhood + 1 if manifold else 2)
    if not least <= count <= available:
        source = f"protocol '{protocol.name}' asks for" if requested is None else "--num-images is"
        allowed = f"allowed are {least} to {available} (--num-images)"
        raise ValueError(
            f"got {available} images, {source} {count}; "
            + (f"{allowed}, or sample more" if available >= least else f"needed are {least}")
        )
    return count


def _warnings(count: int, protocol: Protocol) -> list[str]:
    """Reasons to read the scores of `count` images with care."""
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
