"""Continuous-time losses of CD and CT, each (B,) (Appendix B).

Along the ODE the consistency function is constant, so the losses measure its derivative there,
the "tangent" v = df/dt + (df/dx) dx/dt. The weighting cancels the factor that the time grid gives
each t in the limit of many points, as in the released code. The derivative is taken in forward
mode, which costs about a second evaluation and can itself be differentiated. Arguments are those
of `losses`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmrepro.consistency.distances import Distance
from cmrepro.consistency.losses import Labels, Model, noisy
from cmrepro.consistency.solvers import ode_slope

Objective = Callable[[Tensor, Tensor], Tensor]  # (f, v), (B, C, H, W) both -> (B,)


def tangent_l1(prediction: Tensor, tangent: Tensor) -> Tensor:
    """Mean |v|, (B,): the limit for the l1 distance (the paper sums over pixels)."""
    return tangent.abs().flatten(1).mean(1)


def tangent_l2(prediction: Tensor, tangent: Tensor) -> Tensor:
    """||v||, (B,), as released; the paper has its square (deviation `continuous-l2-norm`)."""
    return torch.linalg.vector_norm(tangent.flatten(1), dim=1)


TANGENTS: dict[str, Objective] = {"l1": tangent_l1, "l2": tangent_l2}


def stop_gradient_l2(prediction: Tensor, tangent: Tensor) -> Tensor:
    """<f, stop-gradient(v)>, (B,): its gradient is that of CD with mu = 0 and l2, up to a factor.

    The value has no meaning and may be negative.
    """
    return (prediction * tangent.detach()).flatten(1).sum(1)


def stop_gradient(distance: Distance) -> Objective:
    """<f, stop-gradient(H v)> for any d, e.g. LPIPS: the limit of CD with mu = 0 (Appendix B).

    H is the Hessian of d(x, f) in x at x = f. As with `stop_gradient_l2`, only the gradient has a
    meaning; for l2 the two differ by the factor 2 / (C H W) of its mean.
    """

    def objective(prediction: Tensor, tangent: Tensor) -> Tensor:
        f = prediction.detach()
        gradient = torch.func.grad(lambda x: distance(x, f).sum())
        curvature = torch.func.jvp(gradient, (f,), (tangent.detach(),))[1]  # H v
        return (prediction * curvature).flatten(1).sum(1)

    return objective


def consistency_tangent(
    online: Model, x_t: Tensor, t: Tensor, slope: Tensor, labels: Labels = None
) -> tuple[Tensor, Tensor]:
    """f(x_t, t) and v = df/dt + (df/dx) slope, both (B, C, H, W), for slope dx/dt at (x_t, t)."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no forward-mode derivative
        outputs = torch.func.jvp(
            lambda x_t, t: online(x_t, t, labels), (x_t, t), (slope, torch.ones_like(t))
        )
    return outputs[0], outputs[1]


def continuous_distillation_loss(
    online: Model,
    teacher: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    objective: Objective,
    labels: Labels = None,
) -> Tensor:
    """CD in continuous time: objective(f, v) with dx/dt = (x_t - D(x_t, t)) / t, the teacher's.

    Here t is in (sigma_min, sigma_max]. The objectives of the released models are all in this
    module, `stop_gradient` with LPIPS.
    """
    x_t = noisy(x, z, t)
    with torch.no_grad():
        slope = ode_slope(x_t, teacher(x_t, t, labels), t)
    return objective(*consistency_tangent(online, x_t, t, slope, labels))


def continuous_training_loss(
    online: Model, x: Tensor, z: Tensor, t: Tensor, objective: Objective, labels: Labels = None
) -> Tensor:
    """CT in continuous time: dx/dt is estimated by (x_t - x) / t, which is z.

    The estimate is unbiased, so that `stop_gradient_l2`, linear in v, has CD's expected gradient
    (Appendix B.2). The released code also trains `tangent_l2`, which its variance biases.
    """
    return objective(*consistency_tangent(online, noisy(x, z, t), t, z, labels))
