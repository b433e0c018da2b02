"""Data N(mean, variance I), for which denoiser, ODE and consistency function are known exactly.

Every value of an image is independent, so that one formula holds value by value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Gaussian:
    mean: float = 0.3
    variance: float = 0.25

    def denoise(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x | x_t], the EDM denoiser D."""
        t = t[:, None, None, None]
        return self.mean + self.variance / (self.variance + t**2) * (x_t - self.mean)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s on the probability-flow ODE through x_t: scales with the marginal's deviation."""
        t, s = t[:, None, None, None], s[:, None, None, None]
        ratio = (self.variance + s**2) / (self.variance + t**2)
        return self.mean + (x_t - self.mean) * ratio.sqrt()

    def consistency(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The consistency function: the ODE's solution at sigma_min."""
        return self.flow(x_t, t, torch.full_like(t, SIGMA_MIN))

    def posterior_pair(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x and z, each twice the batch of x_t, with x + t z = x_t in both halves.

        x = D +- the posterior's deviation: two points with the mean and the variance of x given
        x_t, so that the mean over both is the conditional expectation of any quadratic in x.
        """
        t_ = t[:, None, None, None]
        deviation = (self.variance * t_**2 / (self.variance + t_**2)).sqrt()
        denoised = self.denoise(x_t, t)
        x = torch.cat([denoised + deviation, denoised - deviation])
        return x, (torch.cat([x_t, x_t]) - x) / torch.cat([t_, t_])


def fitted_order(intervals: Tensor, errors: Tensor) -> float:
    """Exponent p of errors ~ intervals^p, by least squares in the logarithms."""
    x, y = intervals.log(), errors.log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())
