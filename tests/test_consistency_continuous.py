"""Losses in continuous time: closed forms on Gaussian data, limits, the official code."""

from collections.abc import Callable

import golden_jax
import pytest
import torch
from gaussian import Gaussian, noise
from torch import Tensor
from torch.nn import functional as F

from cmrepro.consistency.continuous import (
    Objective,
    continuous_distillation_loss,
    continuous_training_loss,
    stop_gradient,
    stop_gradient_l2,
    tangent_l1,
    tangent_l2,
)
from cmrepro.consistency.distances import Distance, l1, l2, unit_feature_distance
from cmrepro.consistency.losses import consistency_distillation_loss
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.solvers import euler_step

DATA = Gaussian(mean=0.0)


def wrong(scale: Tensor) -> Callable[..., Tensor]:
    """A consistency function that is not constant along the ODE."""

    def f(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return scale * (x_t / t[:, None, None, None]).tanh()

    return f


def perceptual(x: Tensor, y: Tensor) -> Tensor:
    """LPIPS's form of distance on a small smooth network of two layers, float64."""
    generator = torch.Generator().manual_seed(0)
    kernels = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((5, 1, 3, 3), (7, 5, 1, 1))
    ]

    def features(images: Tensor) -> list[Tensor]:
        first = F.softplus(F.conv2d(images, kernels[0]))
        return [first, F.softplus(F.conv2d(F.max_pool2d(first, 2), kernels[1]))]

    return unit_feature_distance(features(x), features(y))


def test_the_exact_function_is_constant_along_the_ode() -> None:
    x, z, t = noise(5, 1, 4, 4), noise(5, 1, 4, 4, seed=1), torch.logspace(-2, 1.9, 5).double()
    for objective in (tangent_l1, tangent_l2, stop_gradient_l2, stop_gradient(perceptual)):
        loss = continuous_distillation_loss(DATA.consistency, DATA.denoise, x, z, t, objective)
        # Float64: the two terms of the derivative, up to 100 at t = 0.01, cancel.
        assert loss.abs().max() < 1e-12
    # CT's estimate of dx/dt is noisy, so that only its mean is zero: 3e-4 where t is 79.
    assert (continuous_training_loss(DATA.consistency, x, z, t, tangent_l2) > 1e-4).all()


@pytest.mark.parametrize(
    ("objective", "distance"),
    [
        (tangent_l1, l1),
        (tangent_l2, l2),
        (stop_gradient_l2, l2),
        (stop_gradient(l2), l2),
        (stop_gradient(perceptual), perceptual),
    ],
)
def test_distillation_is_the_limit_of_many_scales(
    objective: Objective, distance: Distance
) -> None:
    """Of CD with Euler's method and mu = 0 over the interval h: d / h for l1, d / h^2 for l2.

    With a stopped gradient, the gradient is that of CD over h; for <f, v>, times 2 / D.
    """
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    f, h = wrong(scale), 1e-5
    x, z = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    t = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    loss = continuous_distillation_loss(f, DATA.denoise, x, z, t, objective)
    discrete = consistency_distillation_loss(
        f, f, DATA.denoise, x, z, t, t - h, euler_step, distance
    )
    if objective is tangent_l1:
        got, expected = loss, discrete / h
    elif objective is tangent_l2:
        got, expected = loss.square() / x[0].numel(), discrete / h**2
    else:
        factor = 2 / x[0].numel() if objective is stop_gradient_l2 else 1
        (got,) = torch.autograd.grad(loss.sum() * factor, scale)
        (expected,) = torch.autograd.grad(discrete.sum() / h, scale)
        assert expected.abs() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)  # the next term is O(h)


def test_a_pixel_without_features_has_a_finite_curvature() -> None:
    """Where a ReLU network is silent, as in LPIPS."""

    def silent(x: Tensor, y: Tensor) -> Tensor:
        return unit_feature_distance([F.relu(x - 10)], [F.relu(y - 10)])

    f = torch.zeros(1, 5, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(stop_gradient(silent)(f, torch.ones_like(f)).sum(), f)
    assert torch.equal(gradient, torch.zeros_like(f))


def test_training_has_the_mean_gradient_of_distillation() -> None:
    """Over x given x_t the mean of z is the exact slope, and <f, v> is linear in it."""
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    x, z = DATA.posterior_pair(t[:, None, None, None] * noise(3, 1, 4, 4), t)
    f, t = wrong(scale), torch.cat([t, t])
    ct = continuous_training_loss(f, x, z, t, stop_gradient_l2).sum()
    cd = continuous_distillation_loss(f, DATA.denoise, x, z, t, stop_gradient_l2).sum()
    got, expected = (torch.autograd.grad(loss, scale)[0] for loss in (ct, cd))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("objective", [tangent_l1, tangent_l2, stop_gradient_l2])
@pytest.mark.parametrize("method", ["cd", "ct"])
def test_continuous_losses_equal_the_official_ones(method: str, objective: Objective) -> None:
    stored = golden_jax.images("jcm_losses/continuous.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    online: PreconditionedModel = golden_jax.model("boundary", "student")
    z, t = stored["z"], stored["t"]
    if method == "cd":
        teacher = golden_jax.model("edm", "teacher")
        loss = continuous_distillation_loss(online, teacher, x, z, t, objective)
    else:
        loss = continuous_training_loss(online, x, z, t, objective)
    norm = objective.__name__.removeprefix("tangent_")
    name = f"{method}_{'l2_stopgrad' if objective is stop_gradient_l2 else norm}"
    # Float32 through a derivative that is a hundred times its function; the sum of
    # `stop_gradient_l2` cancels to a tenth.
    expected = stored[f"per_sample_{name}"]
    scale = expected.abs() if objective is not stop_gradient_l2 else expected.abs().max()
    assert ((loss - expected).abs() < 1e-5 * scale).all()
    # The mean: of sums that cancel once more with `stop_gradient_l2`.
    assert (loss.mean() - stored[f"loss_{name}"]).abs() < 1e-5 * scale.max()
    if f"gradnorm_{name}" in stored:
        loss.mean().backward()
        gradients = [p.grad for p in online.network.parameters()]
        got = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        torch.testing.assert_close(got, stored[f"gradnorm_{name}"], rtol=1e-5, atol=0)
