"""Muon: momentum made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

It replaces the paper's RAdam in the demo's recipes, except in CT from random weights; CHANGELOG.md
has the trials.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a X + b (X X^T) X + c (X X^T)^2 X


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """U V^T of a matrix U S V^T, up to singular values between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    is_tall = len(matrix) > len(matrix.T)
    x = (matrix.T if is_tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.T if is_tall else x


class Muon(torch.optim.RAdam):
    """Muon for weights of two or more axes, (out, in, ...) as (out, in * ...); RAdam for the rest.

    An update has the root mean square 0.2 lr, as one of Adam has (Liu et al. 2025,
    arXiv 2502.16982, Eq. 4), so both take the same learning rate. Along directions in which a
    gradient vanishes, its rounding decides the update, so that equal runs on other machines, or on
    another number of processes, part sooner than by RAdam.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the weights; those of Muon lose their gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim < 2 or weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:  # RAdam reads the step of every state that is loaded
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
                state["step"] += 1
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                nesterov = weight.grad.lerp(state["momentum"], MOMENTUM).flatten(1)
                update = orthogonalize(nesterov)
                scale = 0.2 * max(update.shape) ** 0.5
                weight.sub_(update.view_as(weight), alpha=group["lr"] * scale)
                weight.grad = None  # so RAdam leaves it
        return super().step(closure)
