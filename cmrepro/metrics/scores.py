"""Scores of features and logits: IS, KID, precision, recall, density, coverage.

Features are generated (N, D) and real (M, D). Each score has its standard error over other sets of
as many images of the same generator; the reference and the balls of the manifolds are held fixed.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kernel_poly, mmd2

from cmrepro.records import RANGES
from cmrepro.settings import InceptionScoreSettings, KernelSettings, Metric

NORMAL_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
# The FID of a set against itself is -7e-4 where its singular covariance was rounded to float32.
ROUNDING = {"fid": 1e-2, "sfid": 1e-2}
BLOCK = 2048  # rows and columns of a block of distances: 33 MB in float64


class Estimate(NamedTuple):
    """Value of a metric with its standard error."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """Normal interval of 95 %."""
        half_width = NORMAL_95 * self.standard_error
        return self.value - half_width, self.value + half_width


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean of N values, with the standard error std / sqrt(N)."""
    return Estimate(float(np.mean(values)), float(np.std(values) / np.sqrt(len(values))))


def within_range(metric: Metric, value: float) -> float:
    """The value, put on the edge of the metric's range where rounding left it outside."""
    low, high = RANGES.get(metric, (-np.inf, np.inf))
    edge = min(max(value, low), high)
    return edge if abs(edge - value) < ROUNDING.get(metric, 1e-9) else value


def inception_score(logits: np.ndarray, settings: InceptionScoreSettings) -> Estimate:
    """Inception score: mean over parts of exp(mean over images of KL(p(y|x) | p(y))), 1 to K.

    The last part of `split_size` images may be smaller. The standard error is that of the mean
    divergence of each part, times the exponential: to first order, the share of an image in p(y)
    has no effect.

    Salimans et al. (2016), https://arxiv.org/abs/1606.03498. Parts of equal size: Obukhov et
    al., torch-fidelity (metric_isc.py); of fixed size: Dhariwal, Nichol (2021), evaluator,
    https://arxiv.org/abs/2105.05233.
    """
    count, num_splits = len(logits), settings.num_splits
    if settings.split_size is not None:
        bounds = [*range(0, count, settings.split_size), count]
    elif num_splits is not None:
        bounds = [i * count // num_splits for i in range(num_splits + 1)]
    rng = np.random.RandomState(settings.seed)
    order = rng.permutation(count) if settings.shuffle else np.arange(count)
    log_p = torch.from_numpy(logits[order]).double().log_softmax(dim=1)
    scores, errors = [], []
    for start, stop in pairwise(bounds):
        part = log_p[start:stop]
        p = part.exp()
        q = p.mean(dim=0)
        log_q = q.where(q > 0, 1).log()  # a class without any probability adds 0 log 0 = 0
        divergence = mean_estimate((torch.linalg.vecdot(p, part) - p @ log_q).numpy())
        scores.append(np.exp(divergence.value))
        errors.append(scores[-1] * divergence.standard_error)
    return Estimate(float(np.mean(scores)), float(np.linalg.norm(errors) / len(errors)))


def kernel_distance(generated: np.ndarray, real: np.ndarray, settings: KernelSettings) -> Estimate:
    """Kernel distance (KID): unbiased squared MMD with a polynomial kernel, mean over subsets.

    The standard error is that of a U-statistic to first order: an image adds twice the mean
    kernel with the other generated images of its subset less that with the real ones. Where the
    distributions are the same, and KID is noise, it is too large, by the root of 2 at most.

    Binkowski et al. (2018), https://arxiv.org/abs/1801.01401; Obukhov et al., torch-fidelity,
    whose order of random draws and whose functions of one subset are used.
    """
    size, smaller = settings.subset_size, min(len(generated), len(real))
    if not 2 <= size <= smaller:
        sets = f"for sets of {len(generated)} and {len(real)}; score more images"
        raise ValueError(f"got KID subsets of {size} images, allowed are 2 to {smaller} {sets}")
    kernel = {"kid_kernel_poly_degree": settings.degree, "kid_kernel_poly_coef0": settings.coef0}
    rng = np.random.RandomState(settings.seed)
    distances, influence, ones = [], np.zeros(len(generated)), np.ones(size, np.float32)
    for _ in range(settings.num_subsets):
        rows = rng.choice(len(generated), size, replace=False)
        x, y = generated[rows], real[rng.choice(len(real), size, replace=False)]
        k_xx, k_xy, k_yy = (kernel_poly(a, b, **kernel) for a, b in ((x, x), (x, y), (y, y)))
        distances.append(float(mmd2(k_xx, k_xy, k_yy)))
        added = 2 * ((k_xx @ ones - np.diagonal(k_xx)) / (size - 1) - k_xy @ ones / size)
        influence[rows] += (added - added.mean()) / (size * settings.num_subsets)
    return Estimate(float(np.mean(distances)), float(np.linalg.norm(influence)))


def manifold_scores(
    generated: np.ndarray, real: np.ndarray, *, neighborhood: int, device: str = "cpu"
) -> dict[Metric, Estimate]:
    """Precision, recall, coverage (shares of images) and density (0 to M / k).

    Precision and recall: Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991,
    equations 1, 2. Density and coverage: Naeem et al. (2020), https://arxiv.org/abs/2002.09797,
    equations 3, 4; their code leaves the border of a ball out.
    """
    num_balls, recalled, covered = manifold_counts(generated, real, neighborhood, device)
    balls = mean_estimate(num_balls)
    return {
        "precision": mean_estimate(num_balls > 0),
        "recall": mean_estimate(recalled),
        "density": Estimate(*(number / neighborhood for number in balls)),
        "coverage": mean_estimate(covered),
    }


def manifold_counts(
    generated: np.ndarray, real: np.ndarray, neighborhood: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images that lie in the balls around the images of the other set.

    A ball reaches to the k-th nearest other image of its set, border included (`neighborhood`).
    Gives the number of real balls around each generated image (N,), and True for a real image
    inside the ball of a generated one (M,), and for one whose ball holds a generated one (M,).
    """
    place = "cpu" if device.startswith("mps") else device  # mps has no float64
    x, y = (torch.from_numpy(features).to(place) for features in (generated, real))
    center = y.double().mean(dim=0)  # the smaller the norms, the smaller their rounding
    x_radii, y_radii = (_squared_radii(features, center, neighborhood) for features in (x, y))
    num_balls = torch.zeros(len(x), dtype=torch.int64, device=place)
    recalled, covered = torch.zeros(2, len(y), dtype=torch.bool, device=place)
    for x_rows, x_radius, balls in _blocks(x, x_radii, num_balls):
        for y_rows, y_radius, is_recalled, is_covered in _blocks(y, y_radii, recalled, covered):
            squared = _squared_distances(x_rows, y_rows, center)
            in_real = squared <= y_radius
            balls += in_real.sum(dim=1)
            is_covered |= in_real.any(dim=0)
            is_recalled |= (squared <= x_radius[:, None]).any(dim=0)
    return num_balls.cpu().numpy(), recalled.cpu().numpy(), covered.cpu().numpy()


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each tensor, `BLOCK` at a time."""
    return zip(*(tensor.split(BLOCK) for tensor in tensors), strict=True)


def _squared_distances(x: Tensor, y: Tensor, center: Tensor) -> Tensor:
    """Squared distances (X, Y) in float64."""
    return torch.cdist(x.double() - center, y.double() - center).square_()


def _squared_radii(x: Tensor, center: Tensor, neighborhood: int) -> Tensor:
    """Squared distance (N,) from each row to its k-th nearest other row."""
    # More than rounding can move an image on the border: 1e-13 of the squared norm for D = 2,048.
    rounding = 8 * (x.shape[1] + 8) ** 0.5 * torch.finfo(torch.float64).eps
    radii = []
    for (rows,) in _blocks(x):
        nearest = torch.empty(len(rows), 0, dtype=torch.float64, device=x.device)
        for (columns,) in _blocks(x):
            found = torch.cat([nearest, _squared_distances(rows, columns, center)], dim=1)
            count = min(neighborhood + 1, found.shape[1])  # with the row itself
            nearest = found.topk(count, largest=False).values
        kth = nearest[:, -1]
        norms = (rows.double() - center).square().sum(dim=1)
        radii.append(kth + rounding * (kth + norms))
    return torch.cat(radii)
