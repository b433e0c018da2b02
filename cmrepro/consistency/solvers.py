"""One step and a whole solution of the probability-flow ODE dx/dt = (x - D(x, t)) / t.

EDM, Equation 1 with sigma(t) = t. Deterministic, without the churn of Karras et al.: the paper
uses Euler's and Heun's method only.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from cmrepro.consistency.parameterization import Denoiser


def ode_slope(x_t: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """dx/dt at (x_t, t), (B, C, H, W), for times (B,) > 0."""
    return (x_t - denoised) / t[:, None, None, None]


def euler_step(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = x_t + (s - t) dx/dt by Euler's method: 1 evaluation, local error O((t - s)^2).

    t (B,) are the times of `x_t`, s (B,) those of the result, 0 <= s < t.
    """
    return x_t + (s - t)[:, None, None, None] * ode_slope(x_t, denoiser(x_t, t), t)


def heun_step(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s by Heun's method, the mean slope of both ends: 2 evaluations, error O((t - s)^3).

    Arguments as `euler_step`, with s > 0, since the slope is evaluated at s too.
    """
    interval = (s - t)[:, None, None, None]
    slope = ode_slope(x_t, denoiser(x_t, t), t)
    x_s = x_t + interval * slope
    return x_t + interval * (slope + ode_slope(x_s, denoiser(x_s, s), s)) / 2


OdeStep = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]
SOLVERS: dict[str, OdeStep] = {"euler": euler_step, "heun": heun_step}


def solve_ode(
    denoiser: Denoiser, x_t: Tensor, times: Tensor, step: OdeStep, to_zero: bool = True
) -> Tensor:
    """Follow the ODE down `times` and from the last one to 0 by an Euler step (EDM, Algorithm 1).

    x_t is at time times[0]; times (N,) decrease, the last one > 0. NFE: N with Euler, 2N - 1 with
    Heun. Without `to_zero` it ends at the last time, as the sampler of progressive distillation.
    """
    grid = (torch.cat([times, times.new_zeros(1)]) if to_zero else times).to(x_t)
    for t, s in pairwise(grid):
        take = step if s > 0 else euler_step
        x_t = take(denoiser, x_t, t.expand(len(x_t)), s.expand(len(x_t)))
    return x_t
