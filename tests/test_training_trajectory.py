"""Distance to the teacher's trajectories, where they are known exactly."""

from itertools import pairwise

import pytest
import torch
from gaussian import SIGMA_MAX, Gaussian
from torch import Tensor, nn

from cmrepro.training.recipes import load_recipe
from cmrepro.training.trajectory import NUM_TRAJECTORIES, distances_by_time, teacher_trajectories

DATA = Gaussian()


class Exact(nn.Module):
    """The denoiser D, or the consistency function f, of Gaussian data."""

    num_classes = 0

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function, self.weight = getattr(DATA, function), nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.function(x_t, t)


def test_distances_are_those_of_heuns_steps_on_gaussian_data() -> None:
    """Each value is scaled about the mean: by Heun's step, by D and by the exact f."""
    trajectories = teacher_trajectories(Exact("denoise"), load_recipe("cifar10-cd"), 8, 0)
    times, points = trajectories.times.double().tolist(), trajectories.points
    assert points.shape == (18, NUM_TRAJECTORIES, 3, 8, 8) and times[0] == SIGMA_MAX
    scales = [1.0]  # of the points against the first
    for t, s in pairwise(times):
        slopes = [u / (DATA.variance + u**2) for u in (t, s)]
        euler = 1 + (s - t) * slopes[0]
        scales.append(scales[-1] * (1 + (s - t) / 2 * (slopes[0] + slopes[1] * euler)))
    variance = (points[0] - DATA.mean).square().mean().item()
    for function in ("consistency", "denoise"):
        found = distances_by_time(Exact(function), trajectories)
        assert [*found] == pytest.approx(times[:-1])
        for t, scale in zip(found, scales, strict=False):
            share = DATA.variance / (DATA.variance + t**2)
            if function == "consistency":
                share = ((DATA.variance + times[-1] ** 2) / (DATA.variance + t**2)) ** 0.5
            expected = variance * (share * scale - scales[-1]) ** 2
            # The difference of two float32 images of size 1.
            assert found[t] ** 0.5 == pytest.approx(expected**0.5, abs=1e-6, rel=1e-4)
