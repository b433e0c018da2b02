import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from cmrepro.metrics import manifolds
from cmrepro.metrics.manifolds import ManifoldScores, manifold_scores


def random_features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, non-negative features with a decaying spectrum, as a network's."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((dim, dim)) / np.sqrt(np.arange(1, dim + 1))
    return np.clip(rng.standard_normal((count, dim)) @ mixing.T + shift, 0, 6).astype(np.float32)


def by_definition(generated: np.ndarray, real: np.ndarray, k: int) -> ManifoldScores:
    """All pairs at once, each distance a sum of squared differences in float64."""

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        difference = a[:, None].astype(np.float64) - b[None]
        return np.einsum("ijd,ijd->ij", difference, difference)

    # The k-th nearest other image: an image is nearest to itself.
    radii = [np.sort(squared(x, x), axis=1)[:, k] for x in (generated, real)]
    distances = squared(generated, real)
    in_real = distances <= radii[1]
    return ManifoldScores(
        num_balls=in_real.sum(axis=1),
        recalled=(distances <= radii[0][:, None]).any(axis=0),
        covered=in_real.any(axis=0),
        neighborhood=k,
    )


def assert_same(got: ManifoldScores, expected: ManifoldScores) -> None:
    """Image by image, not only in the mean."""
    np.testing.assert_array_equal(got.num_balls, expected.num_balls)
    np.testing.assert_array_equal(got.recalled, expected.recalled)
    np.testing.assert_array_equal(got.covered, expected.covered)


def torch_fidelity_shares(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    theirs = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), verbose=False
    )
    return theirs["precision"], theirs["recall"]


def test_points_on_a_line() -> None:
    """Real images at 0, 1, ..., 9 (balls of radius 1); generated ones at 5.0 to 5.3 and 100.

    Four of the five generated images lie among the real ones: precision is 4/5. Their balls
    (k = 1) reach 0.1 each, except that of 100, which reaches back to 5.3: it holds 6, 7, 8 and 9,
    and the first ball holds 5; recall is 5/10. 5.0 lies in the balls of 4, 5 and 6, two of them
    by their borders, the next three in those of 5 and 6: density is 9/5, coverage 3/10.
    """
    real = np.arange(10.0)[:, None]
    generated = np.array([5.0, 5.1, 5.2, 5.3, 100.0])[:, None]
    got = manifold_scores(generated, real, neighborhood=1)
    assert (got.precision, got.recall, got.density, got.coverage) == (0.8, 0.5, 1.8, 0.3)
    np.testing.assert_array_equal(got.num_balls, [3, 2, 2, 2, 0])
    # Which of the two sets is generated matters: swapped, the numbers swap.
    swapped = manifold_scores(real, generated, neighborhood=1)
    assert (swapped.precision, swapped.recall) == (0.5, 0.8)


def test_mode_collapse_is_precise_and_poor_in_recall() -> None:
    real = random_features(300, 8, seed=7)
    collapsed = real[:1] + 1e-3 * np.random.default_rng(0).standard_normal((50, 8))
    got = manifold_scores(collapsed.astype(np.float32), real, neighborhood=3)
    assert got.precision == 1.0
    assert got.recall <= 0.01
    assert got.coverage <= 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_and_recall_equal_torch_fidelity(dtype: type[np.floating[Any]]) -> None:
    generated = random_features(300, 32, seed=8, shift=0.2).astype(dtype)
    real = random_features(400, 32, seed=9).astype(dtype)
    theirs = torch_fidelity_shares(generated, real)
    got = manifold_scores(generated, real, neighborhood=3)
    assert 0 < got.precision < 1 and 0 < got.recall < 1 and got.precision != got.recall
    # Exactly: the same numbers of images, and torch-fidelity gives their shares in float32.
    assert (np.float32(got.precision), np.float32(got.recall)) == theirs


@pytest.mark.parametrize(("rows", "columns"), [(1024, 4096), (50, 70), (12, 12), (33, 200)])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_blocks_do_not_change_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, k: int
) -> None:
    monkeypatch.setattr(manifolds, "ROWS", rows)
    monkeypatch.setattr(manifolds, "COLUMNS", columns)
    generated, real = random_features(150, 16, seed=1, shift=0.2), random_features(220, 16, seed=2)
    assert_same(
        manifold_scores(generated, real, neighborhood=k), by_definition(generated, real, k)
    )


def test_all_neighbours_may_be_asked_for() -> None:
    generated, real = random_features(9, 4, seed=1), random_features(8, 4, seed=2)
    assert_same(
        manifold_scores(generated, real, neighborhood=7), by_definition(generated, real, 7)
    )


@pytest.mark.parametrize("blocks", [1024, 40])
def test_rounding_of_products_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """Two clusters far apart: squared norms of 6e7 round by 4, squared distances are 2."""
    monkeypatch.setattr(manifolds, "ROWS", blocks)
    monkeypatch.setattr(manifolds, "COLUMNS", blocks)
    rng = np.random.default_rng(0)
    generated, real = (
        (rng.standard_normal((count, 64)) / 8 + 1000 * rng.choice([-1, 1], (count, 1)))
        for count in (200, 300)
    )
    generated, real = generated.astype(np.float32), real.astype(np.float32)
    expected = by_definition(generated, real, 3)
    assert 0.2 < expected.precision < 0.98 and 0.2 < expected.recall < 0.98
    assert_same(manifold_scores(generated, real, neighborhood=3), expected)
    # Products in float32 alone get it wrong.
    assert torch_fidelity_shares(generated, real)[0] != np.float32(expected.precision)


def test_ties_and_repeated_images() -> None:
    """Whole numbers, whose distances coincide, some images twice and thrice in both sets."""
    rng = np.random.default_rng(3)
    generated, real = (rng.integers(0, 4, (count, 6)).astype(np.float32) for count in (80, 90))
    generated[:20], real[60:], real[:9] = generated[20:40], real[:30], generated[:9]
    assert_same(
        manifold_scores(generated, real, neighborhood=3), by_definition(generated, real, 3)
    )


def test_one_image_all_over_among_real_ones() -> None:
    """Balls of radius 0, which hold that image and nothing else."""
    real = random_features(60, 8, seed=4)
    generated = real[:1].repeat(50, axis=0)
    got = manifold_scores(generated, real, neighborhood=3)
    assert got.precision == 1.0
    np.testing.assert_array_equal(got.recalled, np.arange(60) == 0)
    assert_same(got, by_definition(generated, real, 3))


def test_the_order_of_images_does_not_matter() -> None:
    generated, real = random_features(120, 16, seed=5), random_features(140, 16, seed=6)
    first, second = (np.random.default_rng(0).permutation(n) for n in (120, 140))
    expected = manifold_scores(generated, real, neighborhood=3)
    got = manifold_scores(generated[first], real[second], neighborhood=3)
    np.testing.assert_array_equal(got.num_balls, expected.num_balls[first])
    np.testing.assert_array_equal(got.recalled, expected.recalled[second])
    np.testing.assert_array_equal(got.covered, expected.covered[second])


def test_density_and_coverage_of_equal_distributions() -> None:
    """The expectations of Naeem et al. (2020), lemmas 1 and 2: 1, and a product of k ratios."""
    k, count = 5, 3000
    rng = np.random.default_rng(0)
    generated, real = rng.standard_normal((2, count, 4))
    got = manifold_scores(generated, real, neighborhood=k)
    assert got.density == pytest.approx(1, abs=0.05)  # over seeds its standard deviation is 0.012
    missed = np.prod([(count - i) / (2 * count - i) for i in range(1, k + 1)])
    # The standard deviation of a share of 3,000 images is 0.003, and they are not independent.
    assert got.coverage == pytest.approx(1 - missed, abs=0.015)


def test_feature_sets_that_do_not_belong_together_are_refused() -> None:
    x = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="float32 with 3 dimensions, real ones float32 with 2"):
        manifold_scores(x, np.zeros((5, 2), np.float32), neighborhood=3)
    with pytest.raises(ValueError, match="real ones float64"):
        manifold_scores(x, x.astype(np.float64), neighborhood=3)
    with pytest.raises(ValueError, match="generated features are float16 of shape"):
        manifold_scores(x.astype(np.float16), x, neighborhood=3)
    with pytest.raises(ValueError, match="neighborhood is 5, allowed are 1 to 4"):
        manifold_scores(x, x, neighborhood=5)


# The features are made by the process that is measured; its peak before is subtracted.
MEMORY = """
import resource, numpy as np
from cmrepro.metrics.manifolds import manifold_scores
rng = np.random.default_rng(0)
generated, real = (rng.standard_normal((n, 16), dtype=np.float32) for n in (50_000, 10_000))
manifold_scores(generated[:100], real[:100], neighborhood=3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores = manifold_scores(generated, real, neighborhood=3)
assert 0 < scores.precision < 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_memory_beyond_the_features_is_bounded() -> None:
    """50,000 against 10,000 images; a matrix of all their pairs would take 12 GB."""
    output = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    ).stdout
    # 0.08 GB measured, and at 2,048 dimensions 0.6 GB, of which a copy of both sets takes 0.5.
    assert int(output) < 0.2e9
