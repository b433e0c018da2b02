"""Fréchet distance of two Gaussians (FID, sFID): moments of features, distance, standard error.

Our own: a symmetric eigenproblem is faster and more exact than the matrix square root of others.
"""

import numpy as np
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpotrf, dpstrf, dsygst

# Eigenvalues below zero that a covariance may have, in units of its norm: other tools sum in
# float32 too. Rounding to float32 alone leaves 6e-8.
COVARIANCE_ROUNDING = 1e-5

MOMENTS_BLOCK = 4096  # rows of features in float64 at once

PARTS = 5  # most parts of a set, whose FIDs tell its standard error


class StreamingMoments:
    """Mean and covariance of features that arrive in batches, in float64.

    Reference: Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for
    computing sample variances", equation 2.1 for vectors.
    """

    def __init__(self, feature_dim: int) -> None:
        self.num_images = 0
        self._mean = np.zeros(feature_dim)
        self._scatter = np.zeros((feature_dim, feature_dim))

    def update(self, features: np.ndarray) -> None:
        """Add a batch of finite features."""
        check_features(features)
        for start in range(0, len(features), MOMENTS_BLOCK):
            block = features[start : start + MOMENTS_BLOCK].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            total = self.num_images + len(block)
            shift = mean - self._mean
            self._scatter += block.T @ block
            self._scatter += np.outer(shift, shift) * (self.num_images * len(block) / total)
            self._mean += shift * (len(block) / total)
            self.num_images = total

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Mu and sigma with ddof = 1, float64, of at least 2 images."""
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
    would blow up from 1e-16 to 1e-8; then it is the sum of the singular values of L1^T L2, with
    factors from Cholesky's method with pivoting, which stops at the rank of the matrix.

    Dowson, Landau (1982), "The Fréchet distance between multivariate normal distributions";
    Heusel et al. (2017), https://arxiv.org/abs/1706.08500, equation 6.
    """
    sigma1, sigma2 = (np.asarray(sigma, dtype=np.float64) for sigma in (sigma1, sigma2))
    squared = None
    if (factor := _definite_factor(sigma1)) is not None:
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
    factor, failed = dpotrf(sigma.T, lower=1, clean=0)  # in LAPACK's order of memory
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


def fid_of_features(features: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    """FID of features (N, D) against the moments of a reference."""
    moments = StreamingMoments(len(mu))
    moments.update(features)
    return frechet_distance(*moments.mean_and_covariance(), mu, sigma)


def fid_standard_error(
    features: np.ndarray, mu: np.ndarray, sigma: np.ndarray, seed: int = 0
) -> float:
    """Standard error of the FID of features (N, D), from halves, thirds, ..., fifths of them.

    The parts of one size are disjoint and differ by chance alone, not by bias. A mean over g parts
    has the variance of the whole: a gth of that of one part.
    """
    count = len(features)
    if count < 2 * PARTS:
        raise ValueError(f"got {count} images, intervals need at least {2 * PARTS}")
    shuffled = features[np.random.default_rng(seed).permutation(count)]
    numbers, variances = range(2, PARTS + 1), []
    for number in numbers:
        parts = shuffled[: count // number * number].reshape(number, count // number, -1)
        distances = [fid_of_features(part, mu, sigma) for part in parts]
        variances.append(np.var(distances, ddof=1) / number)
    variance = np.average(variances, weights=[number - 1 for number in numbers])
    return float(np.sqrt(variance))


def check_features(features: np.ndarray) -> None:
    """Raise ValueError unless these are a finite matrix with N >= 1."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features have shape {features.shape}, must have (N, D) with N >= 1")
    if not np.isfinite(features).all():
        row = int(np.argwhere(~np.isfinite(features).all(axis=1))[0, 0])
        raise ValueError(f"features of image {row} are not finite; inspect that image")


def check_gaussian(mu: np.ndarray, sigma: np.ndarray) -> None:
    """Raise ValueError unless these are a finite mean and a covariance, of any rank."""
    if mu.ndim != 1 or mu.size == 0 or sigma.shape != (len(mu), len(mu)):
        shapes = f"mu has shape {mu.shape} and sigma {sigma.shape}"
        raise ValueError(f"{shapes}, must be (D,) and (D, D)")
    if not all(np.abs(array).max() < 1e100 for array in (mu, sigma)):  # nor their products
        raise ValueError("mu or sigma hold values that are not finite")
    asymmetry = np.abs(sigma - sigma.T).max()
    # 1e-6: float32 files of other tools, whose two triangles were rounded apart.
    if asymmetry > 1e-6 * np.abs(sigma).max():
        raise ValueError(f"sigma differs from its transpose by {asymmetry:.3g}")
    shifted, limit = sigma.copy(), COVARIANCE_ROUNDING * np.linalg.norm(sigma)
    shifted.flat[:: len(mu) + 1] += limit
    if limit and dpotrf(shifted.T, lower=1, overwrite_a=1)[1]:  # an eighth of the distance's cost
        raise ValueError("sigma is no covariance: its least eigenvalue is negative")
