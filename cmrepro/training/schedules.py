"""What the schedules of a recipe say at a step."""

import math

from cmrepro.consistency.schedules import karras_times, num_scales_at, target_ema_at
from cmrepro.settings import Recipe


def scales_and_mu(recipe: Recipe, step: int) -> tuple[int, float]:
    """N and mu at a step: fixed, or N(k) and mu(k)."""
    if recipe.num_scales is not None:
        num_scales = recipe.num_scales
    else:
        assert recipe.s0 is not None and recipe.s1 is not None
        schedule_steps = recipe.schedule_steps or recipe.total_steps
        num_scales = num_scales_at(step, schedule_steps, recipe.s0, recipe.s1)
    if recipe.target_ema is not None:
        return num_scales, recipe.target_ema
    assert recipe.mu0 is not None and recipe.s0 is not None
    return num_scales, target_ema_at(num_scales, recipe.s0, recipe.mu0, recipe.mu_form)


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Learning rate of the step that follows `step` steps.

    The inverse square root is that of Karras et al. (2024, EDM2), Equation 67 without its warm-up.
    """
    rate = recipe.learning_rate
    if recipe.inverse_sqrt_after:
        rate /= math.sqrt(max(step * recipe.batch_size / recipe.inverse_sqrt_after, 1))
    if recipe.linear_decay_share:
        left = recipe.total_steps - step
        rate *= min(left / (recipe.linear_decay_share * recipe.total_steps), 1)
    return rate


def two_step_time(recipe: Recipe) -> float | None:
    """The second sampling time that the recipe's index means on its last time grid, if it has one.

    Where N grows, the grid is the last one, of s1 + 1 points (deviation `ct-num-boundaries`).
    """
    if recipe.two_step_index is None:
        return None
    num_scales = scales_and_mu(recipe, recipe.schedule_steps or recipe.total_steps)[0]
    times = karras_times(num_scales, recipe.sigma_min, recipe.sigma_max, recipe.rho)
    return times[recipe.two_step_index].item()
