"""Losses of Algorithms 2 and 3 and EDM's: closed forms on Gaussian data, the official codes."""

import copy
from collections.abc import Callable
from typing import Any

import golden
import golden_jax
import pytest
import torch
from gaussian import Gaussian, fitted_order, noise
from random_weights import randomise
from torch import Tensor, nn

from cmrepro.checkpoints.flax import flax_names
from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.losses import (
    Model,
    consistency_distillation_loss,
    consistency_training_loss,
    edm_loss,
)
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import OdeStep, euler_step, heun_step
from cmrepro.networks.adm import ADMConfig, UNet

DATA = Gaussian(mean=0.0)


class Scaled(nn.Module):
    """A denoiser or consistency function times a parameter."""

    def __init__(self, function: Callable[..., Tensor], scale: float) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((x_t, t, labels))
        return self.scale * self.function(x_t, t, labels)


def constant(t: float, batch: int = 1) -> Tensor:
    return torch.full((batch,), t, dtype=torch.float64)


def loss_of(method: str, online: Model, target: Model, teacher: Model, *of: Any) -> Tensor:
    """CT's loss or CD's with Heun's method of x, z, t, s, distance and labels."""
    if method == "ct":
        return consistency_training_loss(online, target, *of)
    x, z, t, s, *rest = of
    return consistency_distillation_loss(online, target, teacher, x, z, t, s, heun_step, *rest)


# The squared distance of two points that a step of local error O(h^(p + 1)) separates.
@pytest.mark.parametrize(("step", "order"), [(euler_step, 4), (heun_step, 6)])
def test_distillation_loss_of_the_exact_function_is_the_solvers_error(
    step: OdeStep, order: int
) -> None:
    f, intervals = DATA.consistency, 0.5 ** torch.arange(3, 8, dtype=torch.float64)
    x, z = 0.5 * noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1)
    losses = [
        consistency_distillation_loss(
            f, f, DATA.denoise, x, z, constant(1), constant(1 - h), step, l2
        )
        for h in intervals.tolist()
    ]
    # The next term is smaller by h <= 1/8, and squared counts twice.
    assert fitted_order(intervals, torch.cat(losses)) == pytest.approx(order, abs=0.2)


def test_training_and_distillation_agree_in_the_limit() -> None:
    """Theorem 2, with the exact teacher and target, and an online model that is wrong.

    Given x_t, CT's x_s is CD's (by Euler) plus (t - s) / t (x - D), whose mean is 0. For l2 and
    a linear target of slope a, the two losses differ by a^2 ((t - s) / t)^2 Var[x | x_t] exactly.
    """
    t, online, target = 2.0, Scaled(DATA.consistency, 0.8), DATA.consistency
    x, z = DATA.posterior_pair(t * noise(64, 1, 1, 1), constant(t, 64))
    posterior_variance = DATA.variance * t**2 / (DATA.variance + t**2)
    for h in (0.5, 0.05, 0.005, 0.0):
        grid = constant(t, 128), constant(t - h, 128)
        cd = consistency_distillation_loss(
            online, target, DATA.denoise, x, z, *grid, euler_step, l2
        ).mean()
        ct = consistency_training_loss(online, target, x, z, *grid, l2).mean()
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        expected = (target(one, grid[1][:1]).item() * h / t) ** 2 * posterior_variance
        assert (ct - cd).item() == pytest.approx(expected, abs=1e-12)  # float64, losses of 0.01
        d_cd, d_ct = (torch.autograd.grad(loss, online.scale)[0] for loss in (cd, ct))
        assert d_ct.item() == pytest.approx(d_cd.item(), rel=1e-10)  # linear in x_s: no difference


def test_edm_loss_of_the_exact_denoiser_is_one() -> None:
    """The weight 1 / c_out^2 is one over the variance of x given x_t, for data of sigma_data."""
    t = torch.logspace(-2, 1.5, 8, dtype=torch.float64)
    x, z = DATA.posterior_pair(noise(8, 1, 4, 4), t)
    loss = edm_loss(DATA.denoise, x, z, torch.cat([t, t]), sigma_data=DATA.variance**0.5)
    # x is rebuilt from x_t = x + t z: 1e-16 over a deviation of t = 0.01.
    torch.testing.assert_close(loss, torch.ones_like(loss), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", ["cd", "ct"])
@pytest.mark.parametrize("shared", [False, True], ids=["own target", "mu = 0"])
def test_the_gradient_reaches_the_online_model_only(method: str, shared: bool) -> None:
    online, teacher = Scaled(DATA.consistency, 0.8), Scaled(DATA.denoise, 0.9)
    target = online if shared else copy.deepcopy(online)
    x, z = noise(4, 1, 2, 2).requires_grad_(), noise(4, 1, 2, 2, seed=1)
    indices, grid, labels = torch.tensor([0, 1, 2, 1]), karras_times(4), torch.arange(4)
    t, s = grid[indices], grid[indices + 1]
    loss_of(method, online, target, teacher, x, z, t, s, l2, labels).sum().backward()
    (x_s, seen_s, _), (x_t, seen_t, _) = target.calls[0], online.calls[-1]
    assert torch.equal(seen_t, t) and torch.equal(seen_s, s)
    # d sum mean (a f - goal)^2 / da, with the goal held fixed
    exact = DATA.consistency(x_t, t).detach()
    goal = 0.8 * DATA.consistency(x_s, s).detach()
    expected = (2 * (0.8 * exact - goal) * exact).mean((1, 2, 3)).sum()
    assert online.scale.grad is not None
    torch.testing.assert_close(online.scale.grad, expected)
    assert teacher.scale.grad is None and (shared or target.scale.grad is None)
    assert all(call[2] is labels for m in (online, target, teacher) for call in m.calls)
    assert (len(teacher.calls), len(online.calls)) == (2 * (method == "cd"), 1 + shared)


@pytest.mark.parametrize("own_target", [True, False])
def test_both_models_see_the_same_dropout_mask(own_target: bool) -> None:
    config = ADMConfig(32, (1,), 1, (), 32, dropout=0.5)
    online = PreconditionedModel(randomise(UNet(config)), "boundary").train()
    target = copy.deepcopy(online) if own_target else online
    x, z, t = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8), torch.full((2,), 2.0)
    x_t, rest = x + 2 * z, (x, z, t, t, l2)
    with torch.no_grad():
        assert not torch.equal(online(x_t, 2.0), online(x_t, 2.0)), "dropout is off: no test"
    for method in ("ct", "cd"):  # CD's teacher, in training mode too, draws masks of its own
        assert torch.equal(loss_of(method, online, target, online, *rest), torch.zeros(2))
    torch.manual_seed(0)
    consistency_training_loss(online, target, *rest)
    first = online(x_t, 2.0)
    torch.manual_seed(0)
    online(x_t, 2.0)
    # The stream continues after the mask of one evaluation: the next batch has another mask.
    assert torch.equal(online(x_t, 2.0), first)


def total_norm(network: nn.Module) -> Tensor:
    """Norm of all gradients."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in network.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("distance", [l2, l1])
@pytest.mark.parametrize("case", ["cd_heun_N40", "ct_euler_N2", "ct_euler_N18"])
def test_consistency_losses_equal_the_official_pytorch_ones(case: str, distance: Distance) -> None:
    stored = golden.arrays(f"cm_losses/{case}.npz")
    student = golden.adm_weights("cond", "cm_losses/params_student.npz")
    teacher = golden.adm_weights("cond")
    mean = {name: (student[name] + teacher[name]) * 0.5 for name in student}
    online, target = (golden.model("boundary", "cond", weights) for weights in (student, mean))
    grid, indices = golden.times(int(stored["num_scales"])), stored["indices"]
    t, s, x, z = grid[indices], grid[indices + 1], stored["x"], stored["noise"]
    denoiser = golden.model("edm", "cond", teacher)
    loss = loss_of(case[:2], online, target, denoiser, x, z, t, s, distance, stored["y"])
    loss.mean().backward()
    assert torch.equal(t, stored["t"]) and torch.equal(s, stored["t2"])
    name = distance.__name__
    # Float32 through up to four networks.
    torch.testing.assert_close(loss, stored[f"loss.{name}"], rtol=1e-5, atol=0)
    norm = total_norm(online.network)
    torch.testing.assert_close(norm, stored[f"gradnorm.{name}"], rtol=1e-5, atol=0)
    for key in (key for key in stored if key.startswith(f"grad.{name}/")):
        gradient = online.network.get_parameter(key.partition("/")[2]).grad
        assert gradient is not None
        # Observed 1.4e-6, and 8e-6 for N = 2, where x_t2 has lost most digits.
        assert golden.relative_error(gradient, stored[key]) < 5e-5


@pytest.mark.parametrize("distance", [l2, l1])
@pytest.mark.parametrize(
    "case", ["cd_heun", "cd_heun_stopgrad_self", "ct_euler_N2", "ct_euler_N7", "ct_euler_N33"]
)
def test_consistency_losses_equal_the_official_jax_ones(case: str, distance: Distance) -> None:
    stored = golden_jax.images(f"jcm_losses/{case}.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    online, teacher = golden_jax.model("boundary", "student"), golden_jax.model("edm", "teacher")
    target = online if case.endswith("self") else golden_jax.model("boundary", "target")
    grid, indices = karras_times(int(stored["num_scales"])).float(), stored["indices"].long()
    t, s = stored["t"], stored["t2"]
    # The official grid is a power in float32, the seventh of numbers rounded to 6e-8.
    torch.testing.assert_close(grid[indices], t, rtol=2e-6, atol=0)
    torch.testing.assert_close(grid[indices + 1], s, rtol=2e-6, atol=0)
    loss = loss_of(case[:2], online, target, teacher, x, stored["z"], t, s, distance)
    # Float32 through up to four networks; N = 2 steps from t = 80 to 0.002.
    name = distance.__name__
    torch.testing.assert_close(loss, stored[f"per_sample_{name}"], rtol=2e-5, atol=0)
    torch.testing.assert_close(loss.mean(), stored[f"loss_{name}"], rtol=1e-5, atol=0)
    if f"grad_{name}_global_norm" not in stored:
        return
    loss.mean().backward()
    norm = total_norm(online.network)
    torch.testing.assert_close(norm, stored[f"grad_{name}_global_norm"], rtol=1e-5, atol=0)
    weights = dict(online.network.named_parameters())
    gradients = {
        official: weights[key].grad
        for key, official in flax_names(online.network).items()
        if key in weights  # all but the Fourier frequencies
    }
    prefix = f"grad_{name}_leafnorm/"
    leaves = {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
    frequencies = leaves.pop("GaussianFourierProjection_0/W", torch.tensor(0))
    assert frequencies == 0 and leaves.keys() in (set(), gradients.keys())
    for official, expected in leaves.items():
        if official.endswith("NIN_1/b"):  # softmax does not see the key's bias
            assert gradients[official].norm() < 1e-6 * norm
        else:
            # Sums over pixels that cancel; the bare network's error of 3e-6 grows.
            torch.testing.assert_close(gradients[official].norm(), expected, rtol=1e-4, atol=0)


def test_edm_loss_equals_the_official_ones() -> None:
    stored = golden.arrays("cm_losses/edm.npz")
    x, y, z, t = (stored[name] for name in ("x", "y", "noise", "sigmas"))
    with torch.no_grad():
        loss = edm_loss(golden.model("edm", "cond"), x, z, t, labels=y)
    # Float32 through one network, here and below.
    torch.testing.assert_close(loss, stored["karras.loss"], rtol=1e-5, atol=0)
    stored = golden_jax.images("jcm_losses/edm_dsm.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    with torch.no_grad():
        loss = edm_loss(golden_jax.model("edm", "teacher"), x, stored["z"], stored["t"])
    loss = loss * x[0].numel()  # a sum over pixels there
    torch.testing.assert_close(loss, stored["per_sample"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.mean(), stored["loss"], rtol=1e-5, atol=0)
