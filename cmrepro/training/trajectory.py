"""Distance of f to the ends of the teacher's trajectories, by time.

Shows within minutes at which times a distillation gains or loses; FD shows only the sum, in hours.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmrepro.consistency.distances import l2
from cmrepro.consistency.losses import Labels
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step
from cmrepro.noise import class_labels
from cmrepro.settings import Recipe

NUM_TRAJECTORIES = 64
NUM_TIMES = 18  # EDM's grid for CIFAR-10 (Karras et al. 2022)


class Trajectories(NamedTuple):
    """The teacher's trajectories from noise."""

    times: Tensor  # (N,), decreasing
    points: Tensor  # (N, B, C, H, W), the ends last
    labels: Labels  # (B,), or None


@torch.no_grad()
def teacher_trajectories(
    teacher: PreconditionedModel, recipe: Recipe, size: int, seed: int
) -> Trajectories:
    """Solutions of the ODE by Heun's method on EDM's time grid, from noise of `seed`."""
    device = next(teacher.parameters()).device
    times = karras_times(NUM_TIMES, recipe.sigma_min, recipe.sigma_max, recipe.rho).float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(NUM_TRAJECTORIES, 3, size, size, generator=generator)
    points, times = [recipe.sigma_max * noise.to(device)], times.to(device)
    labels = None
    if teacher.num_classes:
        classes = class_labels(seed, range(NUM_TRAJECTORIES), teacher.num_classes)
        labels = torch.from_numpy(classes).to(device)
    for t, s in pairwise(times.unsqueeze(1).expand(-1, NUM_TRAJECTORIES)):
        points.append(heun_step(lambda x_t, t: teacher(x_t, t, labels), points[-1], t, s))
    return Trajectories(times, torch.stack(points), labels)


@torch.no_grad()
def distances_by_time(f: nn.Module, trajectories: Trajectories) -> dict[float, float]:
    """Mean square distance of f(x_t, t), without dropout, to the trajectory's end, by t > end."""
    times, points, labels = trajectories
    was_training, distances = f.training, dict[float, float]()
    f.eval()
    for t, x_t in zip(times[:-1], points[:-1], strict=True):
        distances[t.item()] = l2(f(x_t, t.expand(len(x_t)), labels), points[-1]).mean().item()
    f.train(was_training)
    return distances
