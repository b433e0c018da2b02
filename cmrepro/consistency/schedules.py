"""Time grid, number of scales N(k) and target decay mu(k) (Section 5, Appendix C)."""

import math
from typing import Literal

import torch
from torch import Tensor

MuForm = Literal["paper", "released"]


def karras_times(
    num_scales: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Time grid of Karras et al. (2022, Equation 5), decreasing.

    t_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, (N,)
    float64, from exactly sigma_max to exactly sigma_min. N = `num_scales` is at least 2; a larger
    rho crowds the points at small times.
    """
    if num_scales < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"got num_scales = {num_scales}, sigma_min = {sigma_min}, sigma_max = {sigma_max}; "
            "allowed are num_scales >= 2 and 0 < sigma_min < sigma_max"
        )
    ramp = torch.linspace(0, 1, num_scales, dtype=torch.float64)
    largest, smallest = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    times = (largest + ramp * (smallest - largest)) ** rho
    times[0], times[-1] = sigma_max, sigma_min  # the powers round in the last digit
    return times


def num_scales_at(step: int, total_steps: int, s0: int, s1: int) -> int:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Appendix C).

    It grows from s0 points at k = `step` = 0 to s1 + 1 points at K = `total_steps`. Both released
    repositories clamp the number of intervals to at least 1, which only matters for s0 = 1.
    """
    root = math.sqrt(step / total_steps * ((s1 + 1) ** 2 - s0**2) + s0**2)
    return max(math.ceil(root - 1), 1) + 1


def target_ema_at(num_scales: int, s0: int, mu0: float, form: MuForm = "paper") -> float:
    """mu(k) = exp(s0 ln(mu0) / N(k)), the decay of the target network (Appendix C).

    The released code divides by the number of intervals, N(k) - 1 (deviation
    `target-ema-schedule`). `form` selects one of the two. s0 and mu0 are N and mu at k = 0.
    """
    divisor = num_scales if form == "paper" else num_scales - 1
    return math.exp(s0 * math.log(mu0) / divisor)
