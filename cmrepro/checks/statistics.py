"""Faults of reference statistics, measured against the protocol's own."""

from pathlib import Path

import numpy as np

from cmrepro.checks.findings import Finding, Findings, Settings
from cmrepro.metrics.frechet import frechet_distance
from cmrepro.metrics.reference_files import ReferenceStatistics, read_statistics
from cmrepro.metrics.references import load_reference

CORRELATION_LIMIT = 0.7  # EfficientNet-Lite0 and -Lite1: 0.03; 500 images and all: 0.87 or more
# In standard deviations of a feature: means of N images differ by N^-0.5, files round to 1e-7.
SAME_MEAN = 1e-3
RANK_TOLERANCE = 1e-7  # of the largest variance: files keep covariances in float32


def examine_statistics(path: str, settings: Settings) -> Findings:
    """Check a file of statistics, mean and covariance of features."""
    statistics = read_statistics(Path(path))
    reference = load_reference(settings.protocol, settings.reference)
    return compare(statistics, reference, settings.protocol.num_images)


def compare(
    statistics: ReferenceStatistics, reference: ReferenceStatistics, num_images: int
) -> Findings:
    """Another extractor, too few images, or other images, whichever is first."""
    findings: Findings = dict.fromkeys(("extractor", "too-few-images", "split"))
    if (dims := len(statistics.mu)) != (feature_dim := len(reference.mu)):
        return {"extractor": Finding(measured=f"{dims} features", expected=f"{feature_dim}")}
    variance = np.diag(reference.sigma).clip(RANK_TOLERANCE * reference.sigma.max())
    shift = (np.abs(statistics.mu - reference.mu) / np.sqrt(variance)).max()
    if shift < SAME_MEAN:
        return findings
    distance = frechet_distance(reference.mu, reference.sigma, statistics.mu, statistics.sigma)
    correlation = float(np.corrcoef(statistics.mu, reference.mu)[0, 1])
    count, rank = statistics.metadata.num_images or num_images, matrix_rank(statistics.sigma)
    if rank < matrix_rank(reference.sigma):
        count = min(count, rank + 1)
    if correlation < CORRELATION_LIMIT:
        cause, expected = "extractor", f"above {CORRELATION_LIMIT}"
        measured = f"correlation {correlation:.2f} with the protocol's mean"
    elif count < num_images:
        cause, expected = "too-few-images", f"{num_images:,} or more"
        measured = f"{count:,} images"
    else:
        cause, expected = "split", f"below {SAME_MEAN:g}"
        measured = f"a mean feature is off by {shift:.2g} standard deviations"
    effect = f"fid {distance:.1f} from the protocol's own statistics"
    return findings | {cause: Finding(measured=measured, expected=expected, effect=effect)}


def matrix_rank(sigma: np.ndarray) -> int:
    """Rank of a covariance (D, D); that of N images has at most N - 1."""
    variances = np.linalg.eigvalsh(sigma)
    return int((variances > RANK_TOLERANCE * variances[-1]).sum())
