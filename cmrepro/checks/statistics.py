"""Faults of reference statistics, from the distance of their mean from the protocol's own."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cmrepro.checks.findings import Examination, Finding, Settings, likelihood, moved
from cmrepro.metrics.definitions import StreamingMoments, frechet_distance
from cmrepro.metrics.reference_files import StoredStatistics
from cmrepro.metrics.reference_registry import registered_references
from cmrepro.metrics.references import ReferenceStatistics, load_reference

CORRELATION_LIMIT = 0.3
SAME_IMAGES = 1e-6
RANK_TOLERANCE = 1e-7  # of the largest variance: files keep covariances in float32


class MeanDistance(NamedTuple):
    """How the mean of statistics differs from another one.

    Attributes:
        decorrelation: 1 - correlation of both means over the dimensions.
        num_images: Number of independent images whose mean would differ as much: infinity for
            the same mean.
    """

    decorrelation: float
    num_images: float


def mean_distance(statistics: StoredStatistics, reference: StoredStatistics) -> MeanDistance:
    """Compare the mean of statistics with that of a reference of as many dimensions D.

    The mean of N independent images of the same distribution is, measured by the reference's
    covariance, at a squared distance of D / N on average (a chi-squared variable over N).
    """
    variances, axes = np.linalg.eigh(reference.sigma)
    kept = variances > 1e-6 * variances[-1]
    shift = ((statistics.mu - reference.mu) @ axes)[kept]
    squared = float(np.mean(shift**2 / variances[kept]))
    correlation = float(np.corrcoef(statistics.mu, reference.mu)[0, 1])
    return MeanDistance(1 - correlation, 1 / squared if squared > 0 else np.inf)


def rank(sigma: np.ndarray) -> int:
    """Rank of a covariance (D, D): of N images at most N - 1."""
    variances = np.linalg.eigvalsh(sigma)
    return int((variances > RANK_TOLERANCE * variances[-1]).sum())


def statistics_finding(
    statistics: StoredStatistics, reference: StoredStatistics, least: int
) -> Finding | None:
    """What is wrong with statistics of as many dimensions D as the protocol's own.

    - Another extractor: the means do not go together. 500 real images and all have a correlation
      of 0.87 or more even of few classes; EfficientNet-Lite0 and -Lite1 (both D = 1,280) 0.03.
    - Too few images: the covariance has a lower rank, or the file states fewer than `least`.
    - Other images, as the other split's: neither, but the mean is not the same.

    Args:
        statistics: Of a file.
        reference: The protocol's own.
        least: Number of images that the protocol asks of a sample set.
    """
    distance = mean_distance(statistics, reference)
    if distance.num_images > 1 / SAME_IMAGES:
        return None
    apart = frechet_distance(reference.mu, reference.sigma, statistics.mu, statistics.sigma)
    effect = moved((apart, 0.0), "for the protocol's own statistics")
    if distance.decorrelation > CORRELATION_LIMIT:
        measured = f"1 - correlation with the protocol's mean is {distance.decorrelation:.2f}"
        value = likelihood(distance.decorrelation, CORRELATION_LIMIT)
        return Finding("extractor", measured, f"below {CORRELATION_LIMIT}", value, effect)
    own, full = rank(statistics.sigma), rank(reference.sigma)
    count, measured = statistics.metadata.num_images or least, ""
    if own < full:
        count = min(count, own + 1)
        measured = f"covariance of rank {own:,}, so that it is of "
    if own < full or count < least:
        value = likelihood(max(least, full) / count, 1)
        measured += f"{count:,} images"
        return Finding("too-few-images", measured, f"{least:,} or more", value, effect)
    measured = f"the mean is as far off as that of {distance.num_images:,.0f} other images"
    value = likelihood(1 / distance.num_images, SAME_IMAGES)
    return Finding("other-split", measured, "the same mean", value, effect)


def fid(features: np.ndarray, reference: StoredStatistics) -> float:
    """The Fréchet distance of features (N, D) from a reference."""
    moments = StreamingMoments(len(reference.mu))
    moments.update(features)
    return frechet_distance(reference.mu, reference.sigma, *moments.mean_and_covariance())


def reference_here(settings: Settings) -> ReferenceStatistics | None:
    """The reference to compare with, if it is on this machine already."""
    name = settings.reference or settings.protocol.reference
    registered = registered_references().get(name)
    if registered is not None and not registered.path.is_file():
        return None
    return load_reference(settings.protocol, settings.reference)


def examine_statistics(what: str, settings: Settings) -> Examination:
    """Hold a file of statistics against the protocol's own, or those that were named.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no statistics, or those to compare with cannot be had.
    """
    examination = Examination()
    statistics = _load(what, settings)
    reference = load_reference(settings.protocol, settings.reference)
    _compare(statistics, reference, settings, examination)
    return examination


def compared_reference(settings: Settings, examination: Examination) -> ReferenceStatistics | None:
    """The reference that images are held against, itself held against the protocol's own.

    Args:
        settings: Name the reference.
        examination: Gets what is wrong with it.

    Returns:
        The reference; None where it cannot be used with this extractor.
    """
    own = replace(settings, reference=None)
    if settings.reference is None or not settings.reference.endswith((".npz", ".pkl")):
        return load_reference(settings.protocol, settings.reference)
    statistics = _load(settings.reference, settings)
    reference = reference_here(own)
    if reference is not None:
        _compare(statistics, reference, settings, examination)
    if any(finding.cause == "extractor" for finding in examination.findings):
        return None
    return statistics


def _load(path: str, settings: Settings) -> ReferenceStatistics:
    entry = "fd_dinov2" if settings.protocol.extractor.network == "dinov2" else "fid"
    return ReferenceStatistics.load(path, entry=entry)


def _compare(
    statistics: ReferenceStatistics,
    reference: ReferenceStatistics,
    settings: Settings,
    examination: Examination,
) -> None:
    examination.checked.add("extractor")
    dim, asked = len(statistics.mu), settings.protocol.extractor.feature_dim
    finding: Finding | None
    if dim != asked:
        finding = Finding("extractor", f"{dim} dimensions", f"{asked}", 1.0, "cannot be scored")
    else:
        examination.checked |= {"too-few-images", "other-split"}
        finding = statistics_finding(statistics, reference, settings.protocol.num_images)
    examination.findings += [finding] if finding else []
