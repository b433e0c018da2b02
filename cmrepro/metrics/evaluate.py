"""Scores of a sample set under protocols that share its features, in one pass over its images."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cmrepro.data import ImageSource
from cmrepro.files import item_digests
from cmrepro.metrics.accumulate import Accumulator, accumulate
from cmrepro.metrics.frechet import fid_standard_error, frechet_distance
from cmrepro.metrics.reference_files import FEATURE_METRICS, ReferenceStatistics
from cmrepro.metrics.scores import (
    Estimate,
    inception_score,
    kernel_distance,
    manifold_scores,
    within_range,
)
from cmrepro.records import Uncertainty
from cmrepro.settings import MANIFOLD_METRICS, Extractor, Metric, Protocol


@dataclass(frozen=True)
class Task:
    """A protocol that a sample set is scored under."""

    protocol: Protocol
    reference: ReferenceStatistics  # made for this protocol
    num_images: int | None = None  # score the first N images; the protocol's number by default


@dataclass(frozen=True)
class Scores:
    """Scores of a sample set under a protocol."""

    values: dict[Metric, float]
    num_images: int  # number of images scored
    warnings: list[str]  # limits of the values' meaning, one line each
    features_sha256: str  # of the features scored, float32 (N, D)
    images_sha256: str  # of the images scored, uint8 (N, H, W, 3)
    set_sha256: str | None = None  # of all images of the set, with `checksum_all`
    uncertainty: Uncertainty | None = None  # with `intervals`


def score(
    images: ImageSource,
    tasks: Sequence[Task],
    *,
    device: str = "cpu",
    intervals: bool = False,
    checksum_all: bool = False,
    progress: bool = False,
) -> list[Scores]:
    """Score generated images under the protocol of every task, reading them once.

    `intervals` adds 95 % intervals; `checksum_all` reads all images of the set, for `set_sha256`.
    Ranks other than 0 get no scores.
    """
    counts = [num_scored(images.num_images, task.protocol, task.num_images) for task in tasks]
    needed: defaultdict[tuple[Extractor, int], set[str]] = defaultdict(set)
    for task, count in zip(tasks, counts, strict=True):
        protocol = task.protocol
        task.reference.require_protocol(protocol)
        stored = intervals or bool(FEATURE_METRICS & set(protocol.metrics))
        needed[protocol.extractor, count].add("features" if stored else "moments")
        if "is" in protocol.metrics:
            needed[protocol.logits_extractor, count].add("logits")
    accumulators = {
        (extractor, count): Accumulator(extractor, np.full(count, "features" in x), "logits" in x)
        for (extractor, count), x in needed.items()
    }
    digests = bytearray()  # of the images, in their order
    hash_batch = lambda batch: digests.extend(item_digests(batch))  # noqa: E731
    every = images.num_images * checksum_all
    if not accumulate(images, [*accumulators.values()], hash_batch, every, device, progress):
        return []
    set_sha256 = hashlib.sha256(digests).hexdigest() if checksum_all else None
    results = []
    for task, count in zip(tasks, counts, strict=True):
        generated = accumulators[task.protocol.extractor, count]
        classified = accumulators.get((task.protocol.logits_extractor, count), generated)
        raw, uncertainty = _scores(task, generated, classified.logits, intervals, device)
        values = {metric: within_range(metric, value) for metric, value in raw.items()}
        moved = (metric for metric in values if values[metric] != raw[metric])
        edge = "by rounding, recorded as the edge of its range"
        warnings = [f"{m} was {raw[m]:.17g} {edge}, {values[m]:g}" for m in moved]
        warnings += _warnings(count, images.num_images, task)
        images_sha256 = hashlib.sha256(digests[: 32 * count]).hexdigest()
        sums = generated.digest.hexdigest(), images_sha256, set_sha256
        results.append(Scores(values, count, warnings, *sums, uncertainty if intervals else None))
    return results


def _scores(
    task: Task, generated: Accumulator, logits: np.ndarray | None, intervals: bool, device: str
) -> tuple[dict[Metric, float], Uncertainty]:
    """Values and uncertainty of a task's metrics from the accumulated features."""
    protocol, reference, metrics = task.protocol, task.reference, task.protocol.metrics
    values: dict[Metric, float] = {}
    estimates: dict[Metric, Estimate] = {}
    if "fid" in metrics:
        real = reference.mu, reference.sigma
        values["fid"] = frechet_distance(*generated.moments.mean_and_covariance(), *real)
        if intervals:
            standard_error = fid_standard_error(generated.features, *real)
            estimates["fid"] = Estimate(values["fid"], standard_error)
    if "sfid" in metrics:
        mu, sigma = reference.spatial_mu, reference.spatial_sigma
        assert generated.spatial and mu is not None and sigma is not None
        values["sfid"] = frechet_distance(*generated.spatial.mean_and_covariance(), mu, sigma)
    if "is" in metrics:
        assert protocol.inception_score and logits is not None
        estimates["is"] = inception_score(logits, protocol.inception_score)
    if FEATURE_METRICS & set(metrics):
        features = generated.features, reference.real_features(protocol, device)
    if "kid" in metrics:
        assert protocol.kernel
        size = min(protocol.kernel.subset_size, generated.num_images)
        estimates["kid"] = kernel_distance(*features, protocol.kernel.replace(subset_size=size))
    if set(MANIFOLD_METRICS) & set(metrics):
        assert protocol.manifold
        k = protocol.manifold.neighborhood
        estimates |= manifold_scores(*features, neighborhood=k, device=device)
    values |= {metric: estimate.value for metric, estimate in estimates.items()}
    intervals_ = {metric: estimates[metric].interval for metric in metrics if metric in estimates}
    return {metric: values[metric] for metric in metrics}, Uncertainty(intervals=intervals_)


def num_scored(available: int, protocol: Protocol, requested: int | None = None) -> int:
    """Number of images to score, requested or the protocol's; ValueError if the set has fewer."""
    count = protocol.num_images if requested is None else requested
    parts, manifold = protocol.inception_score, protocol.manifold
    least = max((parts and parts.num_splits) or 2, manifold.neighborhood + 1 if manifold else 2)
    if not least <= count <= available:
        source = f"protocol '{protocol.name}' asks for" if requested is None else "num_images is"
        allowed = f"allowed are {least} or more, and no more than there are images"
        raise ValueError(f"got {available} images, {source} {count}; {allowed}: set num_images")
    return count


def _warnings(count: int, available: int, task: Task) -> Iterator[str]:
    """Reasons to read the scores of the first `count` images with care."""
    protocol, reference = task.protocol, task.reference
    if count < available:
        yield f"the first {count:,} of {available:,} images are scored, not a random subset"
    expected = f"{count:,} images where protocol {protocol.name} has"
    if count != protocol.num_images:
        affected = "FID, IS, precision and recall depend on the number of images"
        yield f"{expected} {protocol.num_images:,}: {affected}"
    if count <= (dim := protocol.extractor.feature_dim):
        singular = "the covariance is singular and the FID biased"
        yield f"{count:,} images for {dim:,} dimensions: {singular}"
    if protocol.kernel and count < protocol.kernel.subset_size:
        yield f"KID from subsets of {expected} {protocol.kernel.subset_size:,}"
    if reference.metadata.extractor is None or reference.metadata.dataset is None:
        trusted = "its extractor, resize and data set are taken on trust"
        yield f"reference {reference.name} does not say what it was made of: {trusted}"
    stored, features = protocol.stored_features, reference.features
    num_real = reference.num_images if features is None else len(features)
    if stored and num_real not in (0, stored.num_images):
        expected = f"protocol {protocol.name} has {stored.num_images:,}"
        affected = "KID, precision and recall depend on it"
        yield f"features of {num_real:,} real images where {expected}: {affected}"
