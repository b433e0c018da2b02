"""Losses of Algorithms 2 and 3 and EDM's: closed forms on Gaussian data, the official code."""

import copy
from collections.abc import Callable
from typing import Any

import golden
import pytest
import torch
from gaussian import Gaussian, fitted_order, noise
from random_weights import randomise
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.losses import (
    Model,
    consistency_distillation_loss,
    consistency_training_loss,
    edm_loss,
)
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import SOLVERS, euler_step, heun_step
from cmrepro.networks.adm import ADMConfig, UNet

DATA = Gaussian(mean=0.0)
PAIR = torch.tensor([0])  # the only interval of a grid of two times


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


def times(t: float, s: float) -> Tensor:
    return torch.tensor([t, s], dtype=torch.float64)


def loss_of(method: str, online: Model, target: Model, teacher: Model, *of: Any) -> Tensor:
    """CT's loss or CD's with Heun's method of x, z, indices, times, distance and labels."""
    if method == "ct":
        return consistency_training_loss(online, target, *of)
    x, z, indices, grid, *rest = of
    return consistency_distillation_loss(
        online, target, teacher, x, z, indices, grid, heun_step, *rest
    )


# The squared distance of two points that a step of local error O(h^(p + 1)) separates.
@pytest.mark.parametrize(("solver", "order"), [("euler", 4), ("heun", 6)])
def test_distillation_loss_of_the_exact_function_is_the_solvers_error(
    solver: str, order: int
) -> None:
    f, steps = DATA.consistency, 0.5 ** torch.arange(3, 8, dtype=torch.float64)
    x, z = 0.5 * noise(1, 1, 4, 4), noise(1, 1, 4, 4, seed=1)
    losses = [
        consistency_distillation_loss(
            f, f, DATA.denoise, x, z, PAIR, times(1, 1 - h), SOLVERS[solver], l2
        )
        for h in steps.tolist()
    ]
    # The next term is smaller by h <= 1/8, and squared counts twice.
    assert fitted_order(steps, torch.cat(losses)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_losses_are_exactly_zero_where_the_interval_is_empty(step: Callable[..., Tensor]) -> None:
    f, x, z, grid = DATA.consistency, noise(3, 1, 4, 4), noise(3, 1, 4, 4), times(2, 2)
    indices = PAIR.expand(3)
    loss = consistency_distillation_loss(f, f, DATA.denoise, x, z, indices, grid, step, l2)
    assert torch.equal(loss, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(consistency_training_loss(f, f, x, z, indices, grid, l2), loss)


def test_training_and_distillation_agree_in_the_limit() -> None:
    """Theorem 2, with the exact teacher and target, and an online model that is wrong.

    Given x_t, CT's x_s is CD's (by Euler) plus (t - s) / t (x - D), whose mean is 0. For l2 and
    a linear target of slope a, the two losses differ by a^2 ((t - s) / t)^2 Var[x | x_t] exactly.
    """
    t, online, target = 2.0, Scaled(DATA.consistency, 0.8), DATA.consistency
    x, z = DATA.posterior_pair(t * noise(64, 1, 1, 1), times(t, t)[:1].expand(64))
    indices = PAIR.expand(128)
    posterior_variance = DATA.variance * t**2 / (DATA.variance + t**2)
    for h in (0.5, 0.05, 0.005):
        grid = times(t, t - h)
        cd = consistency_distillation_loss(
            online, target, DATA.denoise, x, z, indices, grid, euler_step, l2
        ).mean()
        ct = consistency_training_loss(online, target, x, z, indices, grid, l2).mean()
        slope = target(torch.ones(1, 1, 1, 1, dtype=torch.float64), grid[1:]).item()
        expected = (slope * h / t) ** 2 * posterior_variance
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
    online = Scaled(DATA.consistency, 0.8)
    target = online if shared else copy.deepcopy(online)
    teacher = Scaled(DATA.denoise, 0.9)
    x, z = noise(4, 1, 2, 2).requires_grad_(), noise(4, 1, 2, 2, seed=1)
    indices, grid, labels = torch.tensor([0, 1, 2, 1]), karras_times(4), torch.arange(4)
    loss = loss_of(method, online, target, teacher, x, z, indices, grid, l2, labels)
    loss.sum().backward()
    (x_t, t, _), (x_s, s, _) = online.calls[0], target.calls[-1]
    assert torch.equal(t, grid[indices]) and torch.equal(s, grid[indices + 1])
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
    x, z = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)
    x_t, rest = x + 2 * z, (x, z, torch.tensor([0, 0]), times(2, 2).float(), l2)
    with torch.no_grad():
        assert not torch.equal(online(x_t, 2.0), online(x_t, 2.0)), "dropout is off: no test"
    for method in ("ct", "cd"):  # CD's teacher, in training mode too, draws masks of its own
        loss = loss_of(method, online, target, online, *rest)
        assert torch.equal(loss, torch.zeros(2))
    torch.manual_seed(0)
    consistency_training_loss(online, target, *rest)
    first = online(x_t, 2.0)
    torch.manual_seed(0)
    online(x_t, 2.0)
    # The stream goes on after the mask of one evaluation, so that the next batch has another.
    assert torch.equal(online(x_t, 2.0), first)


def l2_32(x: Tensor, y: Tensor) -> Tensor:
    """The official "l2-32", which no released model is trained with."""
    return l2(*(F.interpolate(i, size=32, mode="bilinear") for i in (x, y)))


@pytest.mark.parametrize("distance", [l2, l1, l2_32])
@pytest.mark.parametrize("case", ["cd_heun_N40", "ct_euler_N2", "ct_euler_N18"])
def test_consistency_losses_equal_the_official_ones(case: str, distance: Distance) -> None:
    stored = golden.arrays(f"cm_losses/{case}.npz")
    student = golden.arrays("cm_losses/params_student.npz")
    teacher = golden.arrays("adm/cond/state_dict.npz")
    mean = {name: (student[name] + teacher[name]) * 0.5 for name in student}
    online = golden.model("boundary", "cond", student)
    target = golden.model("boundary", "cond", mean)
    inputs, outputs = [], []
    for model in (online, target):
        model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
        model.register_forward_hook(lambda _, arguments, output: outputs.append(output))
    grid = golden.times(int(stored["num_scales"]))
    x, y, z, indices = (stored[name] for name in ("x", "y", "noise", "indices"))
    denoiser = golden.model("edm", "cond", teacher)
    loss = loss_of(case[:2], online, target, denoiser, x, z, indices, grid, distance, y)
    loss.mean().backward()
    name = distance.__name__.replace("_", "-")
    for got, key in zip(outputs, ("distiller", "distiller_target"), strict=True):
        # At N = 2 the target returns the digits that its input has lost, see below.
        tolerance = 5e-5 if stored["num_scales"] == 2 else 1e-5
        assert golden.relative_error(got, stored[key]) < tolerance
    # The official CT reaches x_t2 by a step from x_t, whose float32 digits up to 300 cancel.
    for got, key in zip((*inputs[0][:2], *inputs[1][:2]), ("x_t", "t", "x_t2", "t2"), strict=True):
        assert (got - stored[key]).abs().max() < 1e-6 * stored["x_t"].abs().max()
    # Float32 through up to four networks.
    torch.testing.assert_close(loss, stored[f"loss.{name}"], rtol=1e-5, atol=0)
    for key in (key for key in stored if key.startswith(f"loss.{name}.")):
        weight = golden.WEIGHTINGS[key.removeprefix(f"loss.{name}.")](stored["t"])
        torch.testing.assert_close(weight * loss, stored[key], rtol=1e-5, atol=0)
    gradients = {key: p.grad for key, p in online.network.named_parameters()}
    norm = torch.nn.utils.get_total_norm([g for g in gradients.values() if g is not None])
    torch.testing.assert_close(norm, stored[f"gradnorm.{name}"], rtol=1e-5, atol=0)
    for key in (key for key in stored if key.startswith(f"grad.{name}/")):
        gradient = gradients[key.partition("/")[2]]
        assert gradient is not None
        # Observed 1.4e-6, and 8e-6 for N = 2, where x_t2 has lost most digits.
        assert golden.relative_error(gradient, stored[key]) < 5e-5


def test_edm_loss_equals_the_official_one() -> None:
    stored = golden.arrays("cm_losses/edm.npz")
    x, y, z, t = (stored[name] for name in ("x", "y", "noise", "sigmas"))
    with torch.no_grad():
        loss = edm_loss(golden.model("edm", "cond"), x, z, t, labels=y)
    unweighted = loss / golden.WEIGHTINGS["karras"](t)
    # Float32 through one network.
    torch.testing.assert_close(unweighted, stored["xs_mse"], rtol=1e-5, atol=0)
    for weighting in ("karras", "uniform", "snr+1"):
        got = unweighted * golden.WEIGHTINGS[weighting](t)
        torch.testing.assert_close(got, stored[f"{weighting}.loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", golden.WEIGHTINGS)
def test_weightings_equal_the_official_ones(weighting: str) -> None:
    stored = golden.arrays("karras/denoise.npz")
    t, expected = stored["sigmas"], stored[f"weighting.{weighting}"]
    # Squares and sums in float32.
    torch.testing.assert_close(golden.WEIGHTINGS[weighting](t), expected, rtol=1e-6, atol=0)
    if weighting != "karras":
        return
    x = z = torch.zeros(len(t), 1, 2, 2)
    loss = edm_loss(lambda x_t, t, labels: x_t + 1, x, z, t)  # an error of 1
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
