"""Losses of consistency distillation and training, and EDM's denoising loss, each (B,).

x (B, C, H, W) are images in [-1, 1], z (B, C, H, W) is standard normal. t (B,) is any time of the
grid except the smallest, s (B,) the next smaller one: t_{n+1} and t_n in the paper. `online` is
f_theta; `target` is f_theta^-, the online model itself if mu = 0.

The consistency losses are unweighted: lambda(t) is the caller's, 1 in the paper's experiments. The
gradient reaches the online model only. Both models see the same dropout mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmrepro.consistency.distances import Distance, l2
from cmrepro.consistency.solvers import OdeStep

Labels = Tensor | None
Model = Callable[[Tensor, Tensor, Labels], Tensor]


def noisy(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = x + t z, (B, C, H, W), for times (B,)."""
    return x + t[:, None, None, None] * z


def _target_output(target: Model, x_s: Tensor, s: Tensor, labels: Labels) -> Tensor:
    """stop-gradient(f_target(x_s, s)); the RNG state is restored for `online`."""
    devices = [x_s.device] if x_s.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        return target(x_s, s, labels)


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
    labels: Labels = None,
) -> Tensor:
    """Loss of Algorithm 2 (CD): d(f(x + t z, t), f_target(x_s, s)) with x_s = step(D, x + t z).

    `teacher` is the EDM denoiser D, `step` the ODE solver from t to s, Heun's in the paper.
    """
    x_t = noisy(x, z, t)
    with torch.no_grad():
        x_s = step(lambda x_t, t: teacher(x_t, t, labels), x_t, t, s)
    target_output = _target_output(target, x_s, s, labels)
    return distance(online(x_t, t, labels), target_output)


def consistency_training_loss(
    online: Model,
    target: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    distance: Distance,
    labels: Labels = None,
) -> Tensor:
    """Loss of Algorithm 3 (CT): d(f(x + t z, t), f_target(x + s z, s))."""
    target_output = _target_output(target, noisy(x, z, s), s, labels)
    return distance(online(noisy(x, z, t), t, labels), target_output)


def edm_loss(
    denoiser: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    sigma_data: float = 0.5,
    labels: Labels = None,
) -> Tensor:
    """Denoising loss of Karras et al. (2022, Equation 2 and Table 1), weighted by 1 / c_out^2.

    (t^2 + sigma_data^2) / (t sigma_data)^2 times the mean over pixels of (D(x + t z, t) - x)^2,
    with t = exp(-1.2 + 1.2 n), n standard normal, in training.
    """
    weight = (t**2 + sigma_data**2) / (t * sigma_data) ** 2
    return weight * l2(denoiser(noisy(x, z, t), t, labels), x)
