"""The schedules N(k), mu(k) and learning rate, and the methods as one table."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from cmrepro.consistency import continuous, losses
from cmrepro.consistency.parameterization import Parameterization
from cmrepro.consistency.progressive import progressive_distillation_loss
from cmrepro.consistency.schedules import karras_times, num_scales_at, target_ema_at
from cmrepro.schema import lookup
from cmrepro.settings import Recipe


def scales_and_mu(recipe: Recipe, step: int) -> tuple[int, float]:
    """N and mu at a step: fixed, or N(k) and mu(k)."""
    num_scales, mu = recipe.num_scales, recipe.target_ema
    if num_scales is None:
        assert recipe.s0 is not None and recipe.s1 is not None
        schedule_steps = recipe.schedule_steps or recipe.total_steps
        num_scales = num_scales_at(step, schedule_steps, recipe.s0, recipe.s1)
    if mu is None:
        assert recipe.mu0 is not None and recipe.s0 is not None
        mu = target_ema_at(num_scales, recipe.s0, recipe.mu0, recipe.mu_form)
    return num_scales, mu


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Learning rate after `step` steps: Karras et al. (2024, EDM2), Eq. 67 without warm-up."""
    rate = recipe.learning_rate
    if recipe.inverse_sqrt_after:
        rate /= math.sqrt(max(step * recipe.batch_size / recipe.inverse_sqrt_after, 1))
    if recipe.linear_decay_share:
        decay_steps = recipe.linear_decay_share * recipe.total_steps
        rate *= min((recipe.total_steps - step) / decay_steps, 1)
    return rate


def time_grid(recipe: Recipe, step: int) -> Tensor:
    """Time grid of a step, (N,) float64, decreasing; PD's has N + 1 points for N steps."""
    is_pd = recipe.method == "pd"
    num_scales = (recipe.num_scales or 0) + 1 if is_pd else scales_and_mu(recipe, step)[0]
    return karras_times(num_scales, recipe.sigma_min, recipe.sigma_max, recipe.rho)


def two_step_time(recipe: Recipe) -> float | None:
    """Second sampling time, on the last time grid (deviation `ct-num-boundaries`)."""
    if recipe.two_step_index is None:
        return None
    times = time_grid(recipe, recipe.schedule_steps or recipe.total_steps)
    return times[recipe.two_step_index].item()


class Models(NamedTuple):
    """Everything that a loss evaluates; None where the method has no such thing."""

    recipe: Recipe
    online: losses.Model
    target: losses.Model
    teacher: Any
    solver: Any
    distance: Any


class Method(NamedTuple):
    """A way to train."""

    parameterization: Parameterization
    draw_times: Callable[[Recipe, int, Generator], tuple[Tensor, Tensor]]  # t and s, (B,) each
    # Models, x, z, t, s, labels -> loss of each image, (B,).
    loss: Callable[[Models, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def log_normal_times(recipe: Recipe, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Noise levels of EDM, ln(t) normal (Karras et al. 2022, Table 1); one step leads to s = 0."""
    t = (-1.2 + 1.2 * torch.randn(recipe.batch_size, generator=generator)).exp()
    return t, torch.zeros_like(t)


def neighbouring_times(recipe: Recipe, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Both ends of an interval of the time grid, uniform over its intervals."""
    times = time_grid(recipe, step).float()
    n = torch.randint(len(times) - 1, (recipe.batch_size,), generator=generator)
    return times[n], times[n + 1]


def any_times(recipe: Recipe, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Times whose root of order rho is uniform, as in the official code; s has no meaning."""
    largest, smallest = (x ** (1 / recipe.rho) for x in (recipe.sigma_max, recipe.sigma_min))
    share = torch.rand(recipe.batch_size, generator=generator)
    t = (smallest + share * (largest - smallest)) ** recipe.rho
    return t, t


def continuous_loss(
    m: Models, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None
) -> Tensor:
    """Loss in continuous time: Theorem 3 or 4 for "continuous-cd", else a pseudo-objective."""
    name, method = str(m.recipe.distance), m.recipe.method
    if method == "continuous-cd":
        objective = lookup("distance in continuous time", name, continuous.TANGENTS)
    else:
        exact = continuous.stop_gradient_l2
        objective = exact if name == "l2" else continuous.stop_gradient(m.distance)
    if method == "continuous-ct":
        return continuous.continuous_training_loss(m.online, x, z, t, objective, labels)
    return continuous.continuous_distillation_loss(m.online, m.teacher, x, z, t, objective, labels)


def middle_time(t: Tensor, s: Tensor, rho: float) -> Tensor:
    """Point between t and s on the grid with twice as many intervals, (B,)."""
    return ((t ** (1 / rho) + s ** (1 / rho)) / 2) ** rho


def progressive_loss(
    m: Models, x: Tensor, z: Tensor, t: Tensor, s: Tensor, labels: Tensor | None
) -> Tensor:
    """PD's loss, at times of the recipe."""
    middle = middle_time(t, s, m.recipe.rho)
    return progressive_distillation_loss(
        m.online, m.teacher, x, z, t, middle, s, m.distance, labels
    )


METHODS = {
    "edm": Method(
        "edm",
        log_normal_times,
        lambda m, x, z, t, s, labels: losses.edm_loss(
            m.online, x, z, t, m.recipe.sigma_data, labels
        ),
    ),
    "cd": Method(
        "boundary",
        neighbouring_times,
        lambda m, x, z, t, s, labels: losses.consistency_distillation_loss(
            m.online, m.target, m.teacher, x, z, t, s, m.solver, m.distance, labels
        ),
    ),
    "ct": Method(
        "boundary",
        neighbouring_times,
        lambda m, x, z, t, s, labels: losses.consistency_training_loss(
            m.online, m.target, x, z, t, s, m.distance, labels
        ),
    ),
    "pd": Method("edm", neighbouring_times, progressive_loss),
    "continuous-cd": Method("boundary", any_times, continuous_loss),
    "continuous-cd-stopgrad": Method("boundary", any_times, continuous_loss),
    "continuous-ct": Method("boundary", any_times, continuous_loss),
}
