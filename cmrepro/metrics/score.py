"""A sample set scored under a protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cmrepro.files import array_sha256
from cmrepro.metrics.definitions import (
    StreamingMoments,
    check_features,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from cmrepro.metrics.features import (
    Features,
    check_images,
    extract,
    load_extractor,
)
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import ReferenceStatistics


@dataclass(frozen=True)
class Scores:
    """What a sample set scores under a protocol.

    Attributes:
        values: By metric: `fid`, `is`, `kid`, `precision`, `recall`.
        num_images: Number of images scored.
        warnings: One line for each reason why a value must be read with care.
        features_sha256: SHA-256 of the features scored, float32 (N, D), hexadecimal.
    """

    values: dict[str, float]
    num_images: int
    warnings: list[str]
    features_sha256: str


def score(
    images: np.ndarray,
    protocol: Protocol,
    reference: ReferenceStatistics,
    *,
    num_images: int | None = None,
    features: Features | None = None,
) -> Scores:
    """Score generated images.

    Args:
        images: uint8 (N, H, W, 3), RGB, 0-255, the generated images.
        protocol: Gives the extractor and the settings of the metrics.
        reference: Statistics of real images, made for this protocol.
        num_images: Score exactly the first `num_images`; what the protocol asks for by default.
        features: What `extract` gave for these images; extracted on the CPU by default.

    Raises:
        ValueError: If there are fewer images than asked for, the images are not uint8
            (N, H, W, 3), the features are not theirs, or the reference is for another protocol.
    """
    check_images(images)
    reference.require_protocol(protocol)
    count = _num_images(len(images), protocol, num_images)
    if features is None:
        features = extract(images[:count], load_extractor(protocol.extractor))
    elif not len(features.features) == len(features.logits) == len(images):
        raise ValueError(
            f"features of {len(features.features)} and logits of {len(features.logits)} images "
            f"for {len(images)} images, must agree; pass what extract gave for these images"
        )
    generated, logits = features.features[:count], features.logits[:count]
    check_features("features", generated)
    moments = StreamingMoments(len(reference.mu))
    moments.update(generated)
    subset_size = min(protocol.kid_subset_size, count)
    precision, recall = precision_recall(
        generated, reference.features, neighborhood=protocol.neighborhood
    )
    values = {
        "fid": frechet_distance(*moments.mean_and_covariance(), reference.mu, reference.sigma),
        "is": inception_score(
            logits, splits=protocol.is_splits, shuffle=protocol.is_shuffle, seed=protocol.is_seed
        ),
        "kid": kernel_distance(
            generated,
            reference.features,
            subsets=protocol.kid_subsets,
            subset_size=subset_size,
            degree=protocol.kid_degree,
            coef0=protocol.kid_coef0,
            seed=protocol.kid_seed,
        ),
        "precision": precision,
        "recall": recall,
    }
    warnings = _warnings(count, len(reference.mu), protocol)
    return Scores(values, count, warnings, array_sha256(generated))


def _num_images(available: int, protocol: Protocol, asked: int | None) -> int:
    """How many images are scored."""
    count = protocol.num_images if asked is None else asked
    least = max(protocol.is_splits, protocol.neighborhood + 1, 2)
    if count < least:
        raise ValueError(
            f"num_images is {count}, protocol {protocol.name!r} needs at least {least}; "
            f"leave it out for {protocol.num_images}"
        )
    if available < count:
        asking = f"protocol {protocol.name!r} asks for" if asked is None else "num_images is"
        raise ValueError(
            f"{available} images, {asking} {count}; sample more, or set num_images to score fewer"
        )
    return count


def _warnings(count: int, feature_dim: int, protocol: Protocol) -> list[str]:
    """Why scores of `count` images must be read with care."""
    warnings = []
    if count != protocol.num_images:
        warnings.append(
            f"{count:,} images where protocol {protocol.name} has {protocol.num_images:,}: "
            "FID, IS, precision and recall depend on the number of images"
        )
    if count <= feature_dim:
        warnings.append(
            f"{count:,} images for {feature_dim:,} dimensions: "
            "the covariance is singular and the FID biased"
        )
    if count < protocol.kid_subset_size:
        warnings.append(
            f"KID from subsets of {count:,} images where protocol {protocol.name} has "
            f"{protocol.kid_subset_size:,}"
        )
    return warnings
