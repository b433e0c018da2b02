"""How far a score may be trusted: its spread over sets of images, and the bias of a finite set.

A standard error answers: how much would the scores of other sets of as many images of the same
generator spread? It comes from resampling the images with replacement (bootstrap); the reference,
a part of the protocol, is held fixed. FID is biased besides: fewer images raise it, and that is
no matter of chance. `fid_by_num_images` shows it and `fid_infinity` takes it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from cmrepro.metrics.definitions import (
    StreamingMoments,
    check_features,
    check_kernel_sets,
    frechet_distance,
    mean_divergence,
)

CONFIDENCE = 0.95

# FID is measured for the whole set, its halves, thirds, ... and this division, evenly spaced in
# 1/N. With fifths the extrapolation of Gaussians in 24 to 64 dimensions spreads as FID itself.
PARTS = 5


def interval(value: float, error: float) -> tuple[float, float]:
    """Normal interval of 95 % around a value with a standard error.

    Not the percentiles of the resampled values: images drawn twice shift IS and KID, but hardly
    change how far they spread.
    """
    half_width = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    return value - half_width, value + half_width


def resampling_weights(num_images: int, resamples: int, seed: int) -> np.ndarray:
    """Weights (resamples, N) of images drawn N times with replacement; each row sums to 1."""
    even = np.full(num_images, 1 / num_images)
    return np.random.default_rng(seed).multinomial(num_images, even, size=resamples) / num_images


def bootstrap_mean_error(values: np.ndarray, resamples: int, seed: int) -> float:
    """Standard error of a mean over images, such as precision, recall, density and coverage.

    Precision and density are means over the generated images, recall and coverage over the real
    ones. The balls stay: what another generated set would change in its own balls is not in the
    error of recall. A share of 0 or 1 has nothing to resample and an error of 0.

    Args:
        values: (N,), what each image adds.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    # Few different values: how often each of these is drawn is all that matters.
    levels, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=resamples
    )
    return float(np.std(drawn @ levels / len(values), ddof=1))


def bootstrap_is_error(probabilities: Iterable[np.ndarray], resamples: int, seed: int) -> float:
    """Standard error of an inception score, from resampling within its parts.

    Args:
        probabilities: From `class_probabilities`: (n, K) of each part.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    scores = [
        np.exp(mean_divergence(p, resampling_weights(len(p), resamples, seed + part)))
        for part, p in enumerate(probabilities)
    ]
    return float(np.std(np.mean(scores, axis=0), ddof=1))


def bootstrap_kid_error(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    subsets: int,
    subset_size: int,
    degree: int,
    coef0: float,
    seed: int,
    resamples: int,
) -> float:
    """Standard error of KID, from resampling the generated images in the subsets that KID draws.

    An image drawn twice makes no pair with itself. A pair counts by the product of how often its
    two images were drawn, and the estimate stays unbiased. Where the two distributions are the
    same, and KID nothing but noise, the error is too large, by the root of 3 at most.

    Args:
        generated: (N, D).
        real: (M, D), of the same type; held fixed.
        subsets: As for `kernel_distance`.
        subset_size: Images in each.
        degree: Degree of the kernel.
        coef0: Constant of the kernel.
        seed: Seed of the subsets, and of the resampling.
        resamples: Number of bootstrap resamples.

    Raises:
        ValueError: As `kernel_distance`.
    """
    check_kernel_sets(generated, real, subset_size)
    weights = torch.from_numpy(resampling_weights(len(generated), resamples, seed))
    x, y = torch.from_numpy(generated), torch.from_numpy(real)
    rng = np.random.RandomState(seed)
    within, pairs, across, drawn = torch.zeros(4, resamples, dtype=torch.float64)
    for _ in range(subsets):
        rows = rng.choice(len(x), subset_size, replace=False)
        own, other = x[rows], y[rng.choice(len(y), subset_size, replace=False)]
        kernel, cross_kernel = (
            (own @ points.T).div_(own.shape[1]).add_(coef0).pow_(degree).double()
            for points in (own, other)
        )
        w = weights[:, rows]  # (resamples, subset_size)
        within += ((w @ kernel.fill_diagonal_(0)) * w).sum(1)
        pairs += w.sum(1).square() - w.square().sum(1)
        across += w @ cross_kernel.mean(1)
        drawn += w.sum(1)
    return float((within / pairs - 2 * across / drawn).std())


class FidInfinity(NamedTuple):
    """FID without the bias of a finite number of images.

    Attributes:
        value: FID at an infinite number of images.
        standard_error: Standard deviation of `value`, and of the FID of all images, over other
            sets of as many images (the spread of seeds).
        bias: By how much the FID of all images is above `value`.
    """

    value: float
    standard_error: float
    bias: float


def fid_by_num_images(
    features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, seed: int
) -> dict[int, tuple[float, ...]]:
    """FID of the whole set, of both halves, of the three thirds and so on.

    Disjoint parts tell chance from bias: those of one size differ by chance alone, and the means
    of two sizes, being of the same images, by bias alone.

    Args:
        features: (N, D), of the generated images; N at least 2 `PARTS`.
        mu: Mean (D,) of the reference.
        sigma: Covariance (D, D) of the reference.
        seed: Seed of the shuffle before the division.

    Returns:
        By number of images in a part, ascending: the FID of every part.

    Raises:
        ValueError: If there are too few images, or features and statistics do not fit.
    """
    check_features("features", features)
    count, dim = features.shape
    if count < 2 * PARTS:
        raise ValueError(
            f"{count} images cannot be divided into {PARTS} parts of at least 2; score more images"
        )
    order = np.random.default_rng(seed).permutation(count)
    curve: dict[int, tuple[float, ...]] = {}
    for divisor in range(PARTS, 0, -1):
        size = count // divisor
        distances = []
        for start in range(0, divisor * size, size):
            moments = StreamingMoments(dim)
            moments.update(features[order[start : start + size]])
            distances.append(frechet_distance(*moments.mean_and_covariance(), mu, sigma))
        curve[size] = tuple(distances)
    return curve


def fid_infinity(curve: Mapping[int, tuple[float, ...]]) -> FidInfinity:
    """Extrapolate FID to an infinite number of images by a straight line in 1/N.

    A mean over the parts of one size weighs in proportion to that size: what of its error the
    other sizes do not share falls as its inverse. The line holds for parts of more images than
    dimensions. With fewer it bends, and the value, though still much nearer to the truth than
    the FID of all images, is farther from it than the standard error says.

    Args:
        curve: From `fid_by_num_images`.

    References:
        Chong, Forsyth (2020), https://arxiv.org/abs/1911.07023, section 4: the bias is linear in
        1/N. They fit subsets that overlap; disjoint parts give the standard error as well.
    """
    sizes = np.array(list(curve), dtype=np.float64)
    means = [np.mean(distances) for distances in curve.values()]
    value = np.polyfit(1 / sizes, means, 1, w=np.sqrt(sizes))[1]
    # A mean over g disjoint parts has the variance of the whole: a gth of that of one part.
    divided = [distances for distances in curve.values() if len(distances) > 1]
    variance = np.average(
        [np.var(distances, ddof=1) / len(distances) for distances in divided],
        weights=[len(distances) - 1 for distances in divided],
    )
    bias = np.mean(curve[max(curve)]) - value
    return FidInfinity(float(value), float(np.sqrt(variance)), float(bias))
