"""Faults of a sample set that its features or labels show."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from cmrepro.checks.findings import Finding, beyond

DUPLICATES_LIMIT = 0.005
COPY_DISTANCE = 0.3
COPIES_LIMIT = 0.01


def repeated(images: NDArray[np.uint8], seen: set[bytes]) -> list[bool]:
    """Which images are bytewise the same as an earlier one.

    Args:
        images: (B, H, W, 3).
        seen: Checksums of earlier images; gets those of these.
    """
    again = []
    for image in images:
        digest = hashlib.sha256(image.tobytes()).digest()
        again.append(digest in seen)
        seen.add(digest)
    return again


def duplicates(again: NDArray[np.bool_]) -> Finding | None:
    """Whether more images are repeated than a data set has of its own (CIFAR-10 below 0.1 %)."""
    measured = f"{again.sum():,} of {len(again):,} images are the same as another one"
    share, limit = float(again.mean()), DUPLICATES_LIMIT
    return beyond("duplicates", share, limit, measured, f"below {limit:.1%}")


def nearest(
    features: NDArray[np.float32], others: NDArray[np.float32], skip_same: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distance (N,) to and number (N,) of the nearest of `others` (M, D) for features (N, D).

    Args:
        features: Looked from.
        others: Looked at.
        skip_same: Leave out the nearest one, which is the image itself.
    """
    # Not by products of matrices: their rounding hides the small distances that are looked for.
    distances = torch.cdist(
        torch.from_numpy(features),
        torch.from_numpy(others),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    found = distances.topk(1 + skip_same, largest=False)
    return found.values[:, -1].numpy(), found.indices[:, -1].numpy()


def copied(features: NDArray[np.float32], real: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images are copies of real ones, (N,): nearer than 0.3 of what real ones keep.

    An image is one where its distance to the nearest real image is below 0.3 of that image's
    distance to the nearest other real image.
    """
    distance, which = nearest(features, real)
    own, _ = nearest(real[which], real, skip_same=True)
    return distance < COPY_DISTANCE * own


def copies(is_copy: NDArray[np.bool_], num_real: int) -> Finding | None:
    """Whether more images are copies than test images are of training images (below 0.5 %).

    Args:
        is_copy: From `copied`.
        num_real: Number of real images they were compared with.
    """
    share, limit = float(is_copy.mean()), COPIES_LIMIT
    measured = f"{share:.1%} of {len(is_copy):,} images are copies of {num_real:,} real ones"
    return beyond("copies", share, limit, measured, f"below {limit:.0%}")


def class_counts(labels: NDArray[np.int64]) -> Finding | None:
    """Whether classes are drawn other than uniformly.

    The total variation between the shares of K classes among n uniform draws and 1 / K is
    0.4 (K / n)^0.5 on average (n draws of a class spread as (n / K)^0.5); twice that is the limit.

    Args:
        labels: (N,), from 0 on.
    """
    counts = np.bincount(labels)
    uniform = np.full(len(counts), 1 / len(counts))
    variation = float(np.abs(counts / counts.sum() - uniform).sum() / 2)
    limit = 0.8 * (len(counts) / len(labels)) ** 0.5
    measured = (
        f"{counts.min():,} to {counts.max():,} images a class, total variation {variation:.2f}"
    )
    return beyond("classes", variation, limit, measured, f"below {limit:.2f}")


def predicted_classes(predicted: NDArray[np.int64], expected: NDArray[np.int64]) -> Finding | None:
    """Whether images are of other classes than real ones, both predicted in the same way.

    A generator without labels may favour classes by itself: never called more than possible.

    Args:
        predicted: (N,) class of the nearest real image of each.
        expected: (M,) class of the nearest other real image of each real one.
    """
    num_classes = int(max(predicted.max(), expected.max())) + 1
    shares = [np.bincount(c, minlength=num_classes) / len(c) for c in (predicted, expected)]
    variation = float(np.abs(shares[0] - shares[1]).sum() / 2)
    limit = 0.8 * (num_classes * (1 / len(predicted) + 1 / len(expected))) ** 0.5
    measured = f"total variation {variation:.2f} between predicted classes and the real images'"
    return beyond("classes", variation, limit, measured, f"below {limit:.2f}", most=0.74)


def redrawn(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers (N,) of images drawn with replacement, as they are and with classes even."""
    generator = np.random.default_rng(seed)
    weights = 1 / np.bincount(labels)[labels].astype(float)
    count = len(labels)
    as_is = generator.choice(count, count)
    return as_is, generator.choice(count, count, p=weights / weights.sum())
