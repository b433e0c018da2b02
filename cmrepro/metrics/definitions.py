"""The metrics as functions of features and logits.

The Fréchet distance is written here, because a symmetric eigenproblem is both faster and more
exact than the general matrix square root or eigenvalues of other tools; so is the inception
score, whose parts its uncertainty needs. KID is torch-fidelity's own function, called on given
features. Precision, recall, density and coverage are in `manifolds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpotrf, dpstrf, dsygst
from scipy.special import entr
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

# Rows of features that are held in float64 at once.
MOMENTS_BLOCK = 4096

# Rows and columns of a covariance that are compared with its transpose at once.
TILE = 128


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

    The trace of the root is the sum of the roots of the eigenvalues of L1^T S2 L1, where
    S1 = L1 L1^T. Where a covariance is singular, zeros are among these, whose rounding the root
    would blow up from 1e-16 to 1e-8; then it is the sum of the singular values of L1^T L2, and
    the factors come from Cholesky's method with pivoting, which stops at the rank of the matrix.
    Nothing is added to a diagonal in either case.

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
    sigma1, sigma2 = (np.asarray(sigma, dtype=np.float64) for sigma in (sigma1, sigma2))
    squared = None
    factor = _definite_factor(sigma1)
    if factor is not None:
        # All steps by one library: threads of a second one wait busily and slow both by a third.
        product, _ = dsygst(sigma2.T, factor, itype=2, lower=1)  # L1^T S2 L1, its lower triangle
        squared = eigvalsh(product, overwrite_a=True, check_finite=False, driver="evd")
        # Zeros of a singular S2 come out as a few units of rounding of the largest eigenvalue.
        noise = np.sqrt(len(mu1)) * np.finfo(np.float64).eps * squared[-1]
        if squared[0] <= noise and _definite_factor(sigma2) is None:
            squared = None
    if squared is None:
        cross = _semidefinite_factor(sigma1).T @ _semidefinite_factor(sigma2)  # (rank1, rank2)
        root_trace = np.linalg.svd(cross, compute_uv=False).sum()
    else:
        root_trace = np.sqrt(np.maximum(squared, 0.0)).sum()  # rounding may leave -1e-16
    difference = np.asarray(mu1, dtype=np.float64) - mu2
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace)


def _definite_factor(sigma: np.ndarray) -> np.ndarray | None:
    """L (D, D) with L L^T = sigma, in its lower triangle; None where sigma is singular."""
    # The transpose has the same values in LAPACK's order of memory.
    factor, failed = dpotrf(sigma.T, lower=1, clean=0)
    if failed:
        return None
    # As for `_semidefinite_factor`: smaller pivots are rounding of the largest variance.
    tolerance = len(sigma) * np.finfo(np.float64).eps * np.diagonal(sigma).max()
    return factor if np.diagonal(factor).min() ** 2 > tolerance else None


def _semidefinite_factor(sigma: np.ndarray) -> np.ndarray:
    """L (D, rank) with L L^T = sigma, up to D x machine epsilon x the largest variance."""
    factor, pivots, rank, _ = dpstrf(sigma, lower=1)
    unpivoted = np.empty((len(sigma), rank))
    unpivoted[pivots - 1] = np.tril(factor)[:, :rank]
    return unpivoted


def inception_score(
    logits: np.ndarray,
    *,
    splits: int | None = None,
    split_size: int | None = None,
    shuffle: bool,
    seed: int,
) -> float:
    """Inception score: mean over parts of exp(mean KL(p(y|x) | p(y))), from 1 to K.

    Args:
        logits: (N, K).
        splits: Number of parts of equal size, up to one image; at most N.
        split_size: Or the number of images of consecutive parts, the last of which may be
            smaller. Exactly one of the two is given.
        shuffle: Whether images are shuffled before.
        seed: Seed of that shuffle.

    Raises:
        ValueError: If the shape is wrong, a value is not finite, N is below `splits`, or not
            exactly one of `splits` and `split_size` is given.

    References:
        Salimans et al. (2016), https://arxiv.org/abs/1606.03498. Parts of equal size: Obukhov et
        al., torch-fidelity; of a given size: the evaluator of Dhariwal, Nichol (2021),
        https://arxiv.org/abs/2105.05233.
    """
    scores = [
        np.exp(mean_divergence(p, np.full((1, len(p)), 1 / len(p)))).item()
        for p in class_probabilities(
            logits, splits=splits, split_size=split_size, shuffle=shuffle, seed=seed
        )
    ]
    return float(np.mean(scores))


def class_probabilities(
    logits: np.ndarray, *, splits: int | None, split_size: int | None, shuffle: bool, seed: int
) -> Iterator[np.ndarray]:
    """The class probabilities (n, K), float64, of each part of an inception score."""
    check_features("logits", logits)
    count = len(logits)
    if splits is not None and split_size is None:
        if not 1 <= splits <= count:
            raise ValueError(
                f"an inception score of {splits} splits needs at least {max(splits, 1)} images, "
                f"got {count}; score more images"
            )
        bounds = [i * count // splits for i in range(splits + 1)]
    elif split_size is not None and splits is None:
        bounds = [*range(0, count, split_size), count]
    else:
        raise ValueError(
            f"splits is {splits} and split_size {split_size}, exactly one must be given"
        )
    order = np.random.RandomState(seed).permutation(count) if shuffle else np.arange(count)
    for start, stop in pairwise(bounds):
        part = torch.from_numpy(logits[order[start:stop]])
        yield part.double().softmax(dim=1).numpy()


def mean_divergence(p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over images of KL(p(y|x) | p(y)), whose exponential is an inception score.

    Args:
        p: Class probabilities (n, K).
        weights: (B, n), each row the weights of the images, which sum to 1.

    Returns:
        (B,).
    """
    q = weights @ p
    return weights @ -entr(p).sum(axis=1) + entr(q).sum(axis=1)


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
    check_kernel_sets(generated, real, subset_size)
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


def check_features(name: str, features: np.ndarray) -> None:
    """Refuse what is not a finite matrix of float32 or float64 with at least one row.

    Raises:
        ValueError: Says what `name` is and what it must be.
    """
    if features.ndim != 2 or 0 in features.shape or features.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name} are {features.dtype} of shape {features.shape}, must be float32 or float64 "
            "(N, D) with N >= 1; take them from extract"
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


def check_kernel_sets(generated: np.ndarray, real: np.ndarray, subset_size: int) -> None:
    """Refuse feature sets that a kernel distance cannot draw its subsets from.

    Raises:
        ValueError: If the sets do not belong together, or one is smaller than a subset.
    """
    check_pair(generated, real)
    smaller = min(len(generated), len(real))
    if not 2 <= subset_size <= smaller:
        raise ValueError(
            f"KID subsets have {subset_size} images, allowed are 2 to {smaller} here; "
            "score more images"
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
    asymmetry = max(
        np.abs(sigma[i : i + TILE, j : j + TILE] - sigma[j : j + TILE, i : i + TILE].T).max()
        for i in range(0, len(mu), TILE)
        for j in range(0, i + 1, TILE)
    )
    if asymmetry > 1e-6 * max(sigma.max(), -sigma.min()):
        raise ValueError(
            f"{name} statistics: sigma differs from its transpose by {asymmetry:.3g}, must be "
            "symmetric; build them again from the images"
        )
