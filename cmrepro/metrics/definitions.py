"""The metrics as functions of features and logits.

The Fréchet distance is written here, because a symmetric eigenproblem is both faster and more
exact than the general matrix square root or eigenvalues of other tools. IS, KID, precision and
recall are torch-fidelity's own functions, called on given features.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

# Up to this many images in either set torch-fidelity holds all pairs of distances at once
# (its default, at most 400 MB a matrix); above it works through blocks of as many rows.
PAIRS_AT_ONCE = 10_000

# Rows of features that are held in float64 at once.
MOMENTS_BLOCK = 4096


class PrecisionRecall(NamedTuple):
    """Improved precision and recall, both in [0, 1]."""

    precision: float
    recall: float


class StreamingMoments:
    """Mean and covariance of features that arrive in batches, in float64.

    References:
        Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
        sample variances", equation 2.1 for vectors.
    """

    def __init__(self, feature_dim: int) -> None:
        """No features yet; `feature_dim` is D."""
        self.num_images = 0
        self._mean = np.zeros(feature_dim)
        self._scatter = np.zeros((feature_dim, feature_dim))

    def update(self, features: np.ndarray) -> None:
        """Add a batch.

        Args:
            features: (B, D), any float type, B >= 1.

        Raises:
            ValueError: If the shape is not (B, D) or a value is not finite.
        """
        check_features("features", features)
        if features.shape[1] != len(self._mean):
            raise ValueError(
                f"features have {features.shape[1]} dimensions, must have {len(self._mean)}; "
                "use one extractor throughout"
            )
        for start in range(0, len(features), MOMENTS_BLOCK):
            block = features[start : start + MOMENTS_BLOCK].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            self._add(len(block), mean, block.T @ block)

    def merge(self, other: Self) -> None:
        """Add what another one has seen, for instance in another process.

        Raises:
            ValueError: If the dimensions differ.
        """
        if len(other._mean) != len(self._mean):
            raise ValueError(
                f"moments of {len(other._mean)} dimensions cannot join moments of "
                f"{len(self._mean)}; use one extractor throughout"
            )
        if other.num_images:
            self._add(other.num_images, other._mean, other._scatter)

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.num_images + count
        shift = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(shift, shift) * (self.num_images * count / total)
        self._mean += shift * (count / total)
        self.num_images = total

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mu (D,) and sigma (D, D) with ddof = 1, float64.

        Raises:
            ValueError: If fewer than two images were seen.
        """
        if self.num_images < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.num_images}")
        sigma = self._scatter / (self.num_images - 1)
        return self._mean.copy(), (sigma + sigma.T) / 2


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    With S1 = L1 L1^T and S2 = L2 L2^T the trace of the root is the sum of the singular values of
    L1^T L2, whatever the ranks. The factors come from Cholesky's method with pivoting, which
    stops at the rank of the matrix: a singular covariance needs no offset on its diagonal.

    Args:
        mu1: Mean (D,).
        sigma1: Covariance (D, D), symmetric and positive semidefinite.
        mu2: Mean (D,).
        sigma2: Covariance (D, D), symmetric and positive semidefinite.

    Returns:
        The distance, at least 0 up to rounding (about 1e-15 of the traces).

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a covariance is not symmetric.

    References:
        Dowson, Landau (1982), "The Fréchet distance between multivariate normal distributions";
        Heusel et al. (2017), https://arxiv.org/abs/1706.08500, equation 6.
    """
    check_gaussian("first", mu1, sigma1)
    check_gaussian("second", mu2, sigma2)
    if mu1.shape != mu2.shape:
        raise ValueError(
            f"statistics have {len(mu1)} and {len(mu2)} dimensions, must agree; "
            "use one extractor for both"
        )
    cross = _semidefinite_factor(sigma1).T @ _semidefinite_factor(sigma2)  # (rank1, rank2)
    if cross.shape[0] < cross.shape[1]:
        cross = cross.T
    # The smaller Gram matrix: the zero singular values that a low rank brings drop out exactly.
    squared = np.linalg.eigvalsh(cross.T @ cross)
    root_trace = np.sqrt(np.maximum(squared, 0.0)).sum()  # rounding may leave -1e-16
    difference = np.asarray(mu1, dtype=np.float64) - mu2
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace)


def _semidefinite_factor(sigma: np.ndarray) -> np.ndarray:
    """L (D, rank) with L L^T = sigma, up to D x machine epsilon x the largest variance."""
    factor, pivots, rank, _ = dpstrf(np.asarray(sigma, dtype=np.float64), lower=1)
    unpivoted = np.empty((len(sigma), rank))
    unpivoted[pivots - 1] = np.tril(factor)[:, :rank]
    return unpivoted


def inception_score(logits: np.ndarray, *, splits: int, shuffle: bool, seed: int) -> float:
    """Inception score: mean over splits of exp(mean KL(p(y|x) | p(y))), from 1 to K.

    Args:
        logits: (N, K), N at least `splits`.
        splits: Number of splits.
        shuffle: Whether images are shuffled before splitting.
        seed: Seed of that shuffle.

    Raises:
        ValueError: If the shape is wrong, a value is not finite, or N is below `splits`.

    References:
        Salimans et al. (2016), https://arxiv.org/abs/1606.03498; Obukhov et al., torch-fidelity.
    """
    check_features("logits", logits)
    if len(logits) < splits:
        raise ValueError(
            f"an inception score of {splits} splits needs at least {splits} images, "
            f"got {len(logits)}; score more images"
        )
    values = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle, seed)
    return float(values[KEY_METRIC_ISC_MEAN])


def kernel_distance(
    generated: np.ndarray,
    real: np.ndarray,
    *,
    subsets: int,
    subset_size: int,
    degree: int,
    coef0: float,
    seed: int,
) -> float:
    """Kernel distance (KID): unbiased squared MMD with a polynomial kernel, mean over subsets.

    Args:
        generated: (N, D).
        real: (M, D), of the same type.
        subsets: Number of random subsets.
        subset_size: Images in each, at most N and M, at least 2.
        degree: Degree of the kernel (x.y / D + coef0)^degree.
        coef0: Constant of the kernel.
        seed: Seed of the subsets.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a set is below `subset_size`.

    References:
        Binkowski et al. (2018), https://arxiv.org/abs/1801.01401; Obukhov et al., torch-fidelity.
    """
    check_pair(generated, real)
    smaller = min(len(generated), len(real))
    if not 2 <= subset_size <= smaller:
        raise ValueError(
            f"KID subsets have {subset_size} images, allowed are 2 to {smaller} here; "
            "score more images"
        )
    values = kid_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        kid_kernel_poly_degree=degree,
        kid_kernel_poly_coef0=coef0,
        rng_seed=seed,
        verbose=False,
    )
    return float(values[KEY_METRIC_KID_MEAN])


def precision_recall(
    generated: np.ndarray, real: np.ndarray, *, neighborhood: int
) -> PrecisionRecall:
    """Improved precision and recall.

    Precision is the share of generated images inside the manifold of the real ones, recall the
    share of real images inside the generated manifold. A manifold is the union of balls around
    its images, each reaching to the k-th nearest neighbour.

    Args:
        generated: (N, D).
        real: (M, D), of the same type.
        neighborhood: k, below N and M.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a set has k images or fewer.

    References:
        Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991; Obukhov et al.,
        torch-fidelity.
    """
    check_pair(generated, real)
    smaller = min(len(generated), len(real))
    if not 1 <= neighborhood < smaller:
        raise ValueError(
            f"neighborhood is {neighborhood}, allowed are 1 to {smaller - 1} for sets of "
            f"{len(generated)} and {len(real)} images; score more images"
        )
    values = prc_features_to_metric(
        torch.from_numpy(generated),
        torch.from_numpy(real),
        prc_neighborhood=neighborhood,
        prc_batch_size=PAIRS_AT_ONCE,
        save_cpu_ram=max(len(generated), len(real)) > PAIRS_AT_ONCE,
        verbose=False,
    )
    return PrecisionRecall(values[KEY_METRIC_PRECISION], values[KEY_METRIC_RECALL])


def check_features(name: str, features: np.ndarray) -> None:
    """Refuse what is not a finite float matrix with at least one row.

    Raises:
        ValueError: Says what `name` is and what it must be.
    """
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind != "f":
        raise ValueError(
            f"{name} are {features.dtype} of shape {features.shape}, must be float (N, D) "
            "with N >= 1; take them from extract"
        )
    if not np.isfinite(features).all():
        row = int(np.argwhere(~np.isfinite(features).all(axis=1))[0, 0])
        raise ValueError(f"{name} of image {row} are not finite, must be; look at that image")


def check_pair(generated: np.ndarray, real: np.ndarray) -> None:
    """Refuse two feature sets that do not belong together.

    Raises:
        ValueError: If one is not a finite float matrix, or dimensions or types differ.
    """
    check_features("generated features", generated)
    check_features("real features", real)
    if generated.shape[1] != real.shape[1] or generated.dtype != real.dtype:
        raise ValueError(
            f"generated features are {generated.dtype} with {generated.shape[1]} dimensions, "
            f"real ones {real.dtype} with {real.shape[1]}, must agree; use one extractor for both"
        )


def check_gaussian(name: str, mu: np.ndarray, sigma: np.ndarray) -> None:
    """Refuse a mean and covariance that are not those of a Gaussian.

    Positive semidefiniteness is not checked: it costs as much as the distance itself.

    Raises:
        ValueError: If shapes are not (D,) and (D, D), a value is not finite, or sigma is not
            symmetric.
    """
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{name} statistics: mu has shape {mu.shape} and sigma {sigma.shape}, must be (D,) "
            "and (D, D); build them again from the images"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(
            f"{name} statistics hold values that are not finite; build them again from the images"
        )
    # 1e-6: float32 files of other tools, whose two triangles were rounded apart.
    asymmetry = np.abs(sigma - sigma.T).max(initial=0.0)
    if asymmetry > 1e-6 * np.abs(sigma).max(initial=0.0):
        raise ValueError(
            f"{name} statistics: sigma differs from its transpose by {asymmetry:.3g}, must be "
            "symmetric; build them again from the images"
        )
