"""Losses of consistency distillation and training, and EDM's denoising loss, each (B,).

The weighting is lambda = 1 throughout, as in the paper. The gradient reaches the online model
only. Both models see the same dropout mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmrepro.consistency.distances import Distance, l2
from cmrepro.consistency.solvers import OdeStep

Model = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def noisy(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = x + t z, (B, C, H, W), for times (B,)."""
    return x + t[:, None, None, None] * z


def _self_consistency(
    online: Model,
    target: Model,
    x_t: Tensor,
    t: Tensor,
    x_s: Tensor,
    s: Tensor,
    distance: Distance,
    labels: Tensor | None,
) -> Tensor:
    """d(f(x_t, t), stop-gradient(f_target(x_s, s))), with one dropout mask for both."""
    devices = [x_t.device] if x_t.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # leaves the masks to `online`
        goal = target(x_s, s, labels)
    return distance(online(x_t, t, labels), goal)


def consistency_distillation_loss(
    online: Model,
    target: Model,
    teacher: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    step: OdeStep,
    distance: Distance,
    labels: Tensor | None = None,
) -> Tensor:
    """Loss of Algorithm 2 (CD): d(f(x + t z, t), f_target(x_s, s)) with x_s = step(D, x + t z).

    Args:
        online: f with the weights that are trained.
        target: f with the target network's weights; `online` itself where mu = 0.
        teacher: EDM denoiser D.
        x: (B, C, H, W), images in [-1, 1].
        z: (B, C, H, W), standard normal.
        t: (B,), times of the grid but its last.
        s: (B,), the times that follow `t` on the grid, s < t.
        step: ODE solver from t to s, Heun in the paper.
        distance: d.
        labels: (B,) int64 for class-conditional models.
    """
    x_t = noisy(x, z, t)
    with torch.no_grad():
        x_s = step(lambda x_t, t: teacher(x_t, t, labels), x_t, t, s)
    return _self_consistency(online, target, x_t, t, x_s, s, distance, labels)


def consistency_training_loss(
    online: Model,
    target: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    distance: Distance,
    labels: Tensor | None = None,
) -> Tensor:
    """Loss of Algorithm 3 (CT): d(f(x + t z, t), f_target(x + s z, s)).

    Arguments as `consistency_distillation_loss`, without a teacher.
    """
    x_t, x_s = noisy(x, z, t), noisy(x, z, s)
    return _self_consistency(online, target, x_t, t, x_s, s, distance, labels)


def edm_loss(
    denoiser: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    sigma_data: float = 0.5,
    labels: Tensor | None = None,
) -> Tensor:
    """Denoising loss of Karras et al. (2022, Equation 2 and Table 1), weighted by 1 / c_out^2.

    (t^2 + sigma_data^2) / (t sigma_data)^2 times the mean over pixels of (D(x + t z, t) - x)^2,
    with t = exp(-1.2 + 1.2 n), n standard normal, in training.
    """
    weight = (t**2 + sigma_data**2) / (t * sigma_data) ** 2
    return weight * l2(denoiser(noisy(x, z, t), t, labels), x)
