"""From a network F to the consistency function f or the denoiser D (Equation 5, Appendix C)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Parameterization = Literal["boundary", "edm"]
Scalings = tuple[Tensor, Tensor, Tensor]
# (x_t (B, C, H, W), t (B,)) -> images of the same shape: D or f with its labels bound.
Denoiser = Callable[[Tensor, Tensor], Tensor]


def edm_scalings(t: Tensor, sigma_data: float = 0.5) -> Scalings:
    """c_skip, c_out, c_in of the EDM denoiser (Karras et al. 2022, Table 1), each like t.

    c_skip = sigma_data^2 / (t^2 + sigma_data^2), c_in = 1 / sqrt(t^2 + sigma_data^2),
    c_out = t sigma_data c_in.
    """
    variance = t**2 + sigma_data**2
    return sigma_data**2 / variance, t * sigma_data * variance.rsqrt(), variance.rsqrt()


def boundary_scalings(t: Tensor, sigma_data: float = 0.5, sigma_min: float = 0.002) -> Scalings:
    """c_skip, c_out, c_in with c_skip = 1 and c_out = 0 at t = sigma_min (Appendix C).

    c_skip = sigma_data^2 / ((t - sigma_min)^2 + sigma_data^2),
    c_out = sigma_data (t - sigma_min) / sqrt(t^2 + sigma_data^2), c_in as EDM's; each like t.
    """
    shifted = t - sigma_min
    norm = (t**2 + sigma_data**2).rsqrt()
    c_skip = sigma_data**2 / (shifted**2 + sigma_data**2)
    return c_skip, sigma_data * shifted * norm, norm


class PreconditionedModel(nn.Module):
    """c_skip(t) x_t + c_out(t) F(c_in(t) x_t, ln(t) / 4): f ("boundary") or D ("edm")."""

    def __init__(
        self,
        network: nn.Module,
        parameterization: Parameterization,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
    ) -> None:
        super().__init__()
        self.network = network
        self.parameterization = parameterization
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min

    @property
    def num_classes(self) -> int:
        """Number of classes of the network; 0 for an unconditional one."""
        return getattr(self.network.config, "num_classes", 0)

    def scalings(self, t: Tensor) -> Scalings:
        """c_skip, c_out, c_in at times `t`, each shaped like it."""
        if self.parameterization == "edm":
            return edm_scalings(t, self.sigma_data)
        return boundary_scalings(t, self.sigma_data, self.sigma_min)

    def forward(self, x_t: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Clean images for noisy images `x_t`, (B, C, H, W) float32, in [-1, 1] but not clipped.

        t is a number or (B,), in [sigma_min, sigma_max].
        """
        x_t = x_t.float()
        t = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).expand(len(x_t))
        c_skip, c_out, c_in = (c[:, None, None, None] for c in self.scalings(t))
        return c_skip * x_t + c_out * self.network(c_in * x_t, t.log() / 4, labels).float()
