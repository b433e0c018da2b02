"""Precision, recall, density and coverage: which image lies near which of the other set.

A manifold is the union of balls around its images, each reaching to the k-th nearest other image
of the same set, border included. All four values follow from one question: does image i lie in
the ball of image j? Products of matrices answer it wherever their rounding cannot matter; the
few pairs in doubt are decided by distances summed in float64. So the answers are those of exact
distances, whatever the size of blocks, the number of threads or the order of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from cmrepro.metrics.definitions import check_pair

# A block of distances: 8 MB in float32.
ROWS = 512
COLUMNS = 4096

# Nearest images kept beyond the k-th: as a rule the exact k-th is among them.
SPARE = 3

# Pairs whose differences are held at once: 32 MB in float64 at 2,048 dimensions.
PAIRS = 2048


@dataclass(frozen=True, eq=False)
class ManifoldScores:
    """Precision, recall, density and coverage, and what each image adds to them.

    Attributes:
        num_balls: (N,) int, for each generated image the number of real balls it lies in.
        recalled: (M,) bool, whether each real image lies in the ball of a generated one.
        covered: (M,) bool, whether the ball of each real image holds a generated one.
        neighborhood: k.
    """

    num_balls: np.ndarray
    recalled: np.ndarray
    covered: np.ndarray
    neighborhood: int

    @property
    def precision(self) -> float:
        """Share of generated images inside the real manifold, in [0, 1]."""
        return float(np.mean(self.num_balls > 0))

    @property
    def recall(self) -> float:
        """Share of real images inside the generated manifold, in [0, 1]."""
        return float(np.mean(self.recalled))

    @property
    def density(self) -> float:
        """Mean number of real balls around a generated image over k, from 0 to M/k."""
        return float(np.mean(self.num_balls) / self.neighborhood)

    @property
    def coverage(self) -> float:
        """Share of real images whose ball holds a generated one, in [0, 1]."""
        return float(np.mean(self.covered))


def manifold_scores(
    generated: np.ndarray, real: np.ndarray, *, neighborhood: int
) -> ManifoldScores:
    """Score generated images by the balls around the images of both sets.

    Distances are worked through in blocks: memory beyond a copy of the features does not grow
    with the number of pairs. Within a set each pair is looked at once, and one block of generated
    and real images serves all four values.

    Args:
        generated: (N, D), float32 or float64.
        real: (M, D), of the same type.
        neighborhood: k, below N and M.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a set has k images or fewer.

    References:
        Precision and recall: Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991,
        equations 1 and 2. Density and coverage: Naeem et al. (2020),
        https://arxiv.org/abs/2002.09797, equations 3 and 4; their code leaves the border of a
        ball out, here it belongs to the ball throughout.
    """
    check_pair(generated, real)
    smaller = min(len(generated), len(real))
    if not 1 <= neighborhood < smaller:
        raise ValueError(
            f"neighborhood is {neighborhood}, allowed are 1 to {smaller - 1} for sets of "
            f"{len(generated)} and {len(real)} images; score more images"
        )
    center = real.mean(axis=0, dtype=np.float64).astype(real.dtype)
    fakes, reals = (_Balls(features, center, neighborhood) for features in (generated, real))
    num_balls = np.zeros(len(generated), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, columns in product(_blocks(0, len(generated), ROWS), _blocks(0, len(real), COLUMNS)):
        lower = _lower_bounds(fakes, reals, rows, columns)
        image, ball, bound = _at_most(lower, reals.reach[columns], rows, columns)
        inside = reals.hold(fakes, ball, image, bound)
        num_balls += np.bincount(image[inside], minlength=len(generated))
        covered[ball[inside]] = True
        ball, image, bound = _at_most(lower, fakes.reach[rows, None], rows, columns)
        recalled[image[fakes.hold(reals, ball, image, bound)]] = True
    return ManifoldScores(num_balls, recalled, covered, neighborhood)


class _Balls:
    """The balls around a set of features.

    Attributes:
        features: (N, D).
        centered: (N, D), the same less a point that both sets share, for products: the nearer
            the features are to it, the less rounding matters.
        norms: (N,) float64, squared norms of these.
        rounding: A squared distance made from such a product is off by at most so many times
            the sum of both squared norms.
        reach: (N,), upper bounds of the squared radii, in the type of the features.
    """

    def __init__(self, features: np.ndarray, center: np.ndarray, neighborhood: int) -> None:
        self.features = features
        self.centered = features - center
        self.norms = np.einsum("nd,nd->n", self.centered, self.centered, dtype=np.float64)
        # 2 |x.y| <= |x|^2 + |y|^2, so a product summed in any order is off by D units of
        # rounding of that sum; the center, the norms, two additions and the comparison take
        # less than 24 more.
        self.rounding = (features.shape[1] + 24) * float(np.finfo(features.dtype).eps) / 2
        self._neighborhood = neighborhood
        self._bounds, self._nearest = self._neighbours(neighborhood + SPARE)
        self._upper = self._bounds + 2 * self.rounding * (
            self.norms[:, None] + self.norms[self._nearest]
        )
        # Squared radii lie between these two.
        self._smallest = self._bounds[:, neighborhood - 1].astype(np.float64)
        self._largest = np.sort(self._upper, axis=1)[:, neighborhood - 1]
        self.reach = self._largest.astype(features.dtype)

    def _neighbours(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest images of each by lower bounds of squared distances, (N, count) each.

        Returns:
            The bounds in ascending order, and which images they belong to.
        """
        total = len(self.features)
        count = min(count, total - 1)
        nearest = _Nearest(total, count, self.features.dtype)
        first = slice(0, min(max(2 * ROWS, count + 1), total))
        # Their distances from the first images tell which of the others can matter to each.
        for rows in (first, *_blocks(first.stop, total, COLUMNS)):
            lower = _lower_bounds(self, self, rows, first)
            if rows == first:
                np.fill_diagonal(lower, np.inf)
            else:
                other, image, bound = _at_most(lower, nearest.bounds[first, -1], rows, first)
                nearest.add(image, other, bound)
            found = torch.from_numpy(lower).topk(count, largest=False)
            nearest.bounds[rows], nearest.images[rows] = found.values, found.indices
        for rows in _blocks(first.stop, total, ROWS):
            for columns in _blocks(rows.start, total, COLUMNS):
                lower = _lower_bounds(self, self, rows, columns)
                if columns.start == rows.start:  # each pair once, none with itself
                    square = lower[:, : len(lower)]
                    square[np.tri(len(square), dtype=np.bool_)] = np.inf
                nearest.add(*_at_most(lower, nearest.bounds[rows, -1:], rows, columns))
                other, image, bound = _at_most(lower, nearest.bounds[columns, -1], rows, columns)
                nearest.add(image, other, bound)
        nearest.merge()
        return nearest.bounds, nearest.images

    def hold(
        self, other: _Balls, balls: np.ndarray, images: np.ndarray, lower: np.ndarray
    ) -> np.ndarray:
        """Whether some of these balls hold some images of another set.

        Args:
            other: The other set.
            balls: (P,) indices of balls.
            images: (P,) indices of images of the other set.
            lower: (P,) lower bounds of their squared distances.

        Returns:
            (P,) bool.
        """
        upper = lower + 2 * self.rounding * (self.norms[balls] + other.norms[images])
        inside = upper <= self._smallest[balls]
        doubtful = np.flatnonzero(~inside & (lower <= self._largest[balls]))
        if len(doubtful):
            balls, images = balls[doubtful], images[doubtful]
            self._measure(np.unique(balls))
            inside[doubtful] = self._distances(balls, other, images) <= self._smallest[balls]
        return inside

    def _measure(self, balls: np.ndarray) -> None:
        """Make the squared radii of some balls exact."""
        kth = self._neighborhood - 1
        balls = balls[self._smallest[balls] < self._largest[balls]]
        # Who is not among the nearest is farther away than the last of them.
        known = self._bounds[balls, -1] > self._largest[balls]
        known |= self._nearest.shape[1] == len(self.features) - 1
        for ball in balls[~known]:
            others = np.delete(np.arange(len(self.features)), ball)
            distances = self._distances(np.full(len(others), ball), self, others)
            self._smallest[ball] = self._largest[ball] = np.partition(distances, kth)[kth]
        balls = balls[known]
        lower, upper = self._bounds[balls].astype(np.float64), self._upper[balls]
        # Only the order of those matters that may be the k-th.
        row, column = np.nonzero(
            (lower <= self._largest[balls, None]) & (upper >= self._smallest[balls, None])
        )
        lower[row, column] = self._distances(balls[row], self, self._nearest[balls[row], column])
        self._smallest[balls] = self._largest[balls] = np.sort(lower, axis=1)[:, kth]

    def _distances(self, balls: np.ndarray, other: _Balls, images: np.ndarray) -> np.ndarray:
        """Squared distances (P,) of pairs, differences and sums in float64."""
        distances = np.empty(len(balls))
        for start in range(0, len(balls), PAIRS):
            part = slice(start, start + PAIRS)
            difference = self.features[balls[part]] - other.features[images[part]].astype(float)
            distances[part] = np.einsum("pd,pd->p", difference, difference)
        return distances


class _Nearest:
    """The nearest images of each, from bounds of distances that arrive in any order.

    Attributes:
        bounds: (N, count), in ascending order once merged.
        images: (N, count), which images these belong to.
    """

    def __init__(self, total: int, count: int, dtype: np.dtype) -> None:
        self.bounds = np.full((total, count), np.inf, dtype)
        self.images = np.zeros((total, count), np.int64)
        self._added: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, image: np.ndarray, other: np.ndarray, bound: np.ndarray) -> None:
        """Take (P,) images, others and bounds of their distances."""
        self._added.append((image, other, bound))
        if sum(len(bound) for _, _, bound in self._added) > self.bounds.size:
            self.merge()

    def merge(self) -> None:
        """Keep the nearest of all that was added."""
        total, count = self.bounds.shape
        everyone = np.arange(total)
        known = everyone.repeat(count), self.images.ravel(), self.bounds.ravel()
        image, other, bound = (
            np.concatenate(parts) for parts in zip(known, *self._added, strict=True)
        )
        self._added.clear()
        order = np.lexsort((bound, image))
        first = np.searchsorted(image[order], everyone)
        kept = order[first[:, None] + np.arange(count)]  # (N, count)
        self.bounds[:], self.images[:] = bound[kept], other[kept]


def _lower_bounds(first: _Balls, second: _Balls, rows: slice, columns: slice) -> np.ndarray:
    """Lower bounds of the squared distances of two blocks of features, (rows, columns)."""
    x_norms, y_norms = (
        ((1 - balls.rounding) * balls.norms[block]).astype(balls.features.dtype)
        for balls, block in ((first, rows), (second, columns))
    )
    lower = (-2 * first.centered[rows]) @ second.centered[columns].T
    lower += y_norms
    lower += x_norms[:, None]
    return lower


def _at_most(
    lower: np.ndarray, limits: np.ndarray, rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a block is at most some limits: the rows and columns, and the values there."""
    flat = np.flatnonzero(lower <= limits)  # faster than the matrix's own `nonzero`
    row, column = np.divmod(flat, lower.shape[1])
    return row + rows.start, column + columns.start, lower.ravel()[flat]


def _blocks(start: int, stop: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]
