"""Steps and solutions of the probability-flow ODE on Gaussian data, where they are known."""

from itertools import pairwise

import golden
import pytest
import torch
from gaussian import SIGMA_MAX, SIGMA_MIN, Gaussian, fitted_order, noise
from torch import Tensor

from cmrepro.consistency.parameterization import Denoiser
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import (
    SOLVERS,
    OdeStep,
    euler_step,
    heun_step,
    ode_slope,
    solve_ode,
)

DATA = Gaussian()


def counted(denoiser: Denoiser) -> tuple[Denoiser, list[Tensor]]:
    """The denoiser and the list of the times at which it will have been called."""
    calls: list[Tensor] = []

    def counting(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x_t),)
        calls.append(t)
        return denoiser(x_t, t)

    return counting, calls


def test_slope_is_the_derivative_of_the_exact_solution() -> None:
    x_t, t = noise(4, 1, 2, 2), torch.tensor([0.01, 0.5, 3.0, 60.0], dtype=torch.float64)
    slope = ode_slope(x_t, DATA.denoise(x_t, t), t)
    h = 1e-5 * t
    central = (DATA.flow(x_t, t, t + h) - DATA.flow(x_t, t, t - h)) / (2 * h)[:, None, None, None]
    # Central differences: h^2 = 1e-10 relative, and 1e-16 / 1e-5 from cancellation.
    torch.testing.assert_close(slope, central, rtol=1e-7, atol=1e-9)


# Order p means a local error O(h^(p + 1)) and a global one O(h^p).
@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])
def test_one_step_has_the_local_order(step: OdeStep, order: int) -> None:
    h = 0.5 ** torch.arange(3, 9, dtype=torch.float64)
    x_t, t = noise(1, 1, 2, 2).expand(len(h), -1, -1, -1), torch.ones_like(h)
    error = (step(DATA.denoise, x_t, t, t - h) - DATA.flow(x_t, t, t - h)).abs().flatten(1).sum(1)
    # The next term of the error is smaller by h, so that from h = 1/8 on the fit is off by < 0.1.
    assert fitted_order(h, error) == pytest.approx(order + 1, abs=0.1)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_the_solution_converges_with_the_order_of_the_method(name: str, order: int) -> None:
    x_t = SIGMA_MAX * noise(4, 1, 2, 2)
    ends = (torch.full((4,), end, dtype=torch.float64) for end in (SIGMA_MAX, SIGMA_MIN))
    exact = DATA.flow(x_t, *ends)
    # The last step, from sigma_min to 0, is Euler's and returns D(x, sigma_min).
    exact = DATA.denoise(exact, torch.full((4,), SIGMA_MIN, dtype=torch.float64))
    intervals = torch.tensor([64, 128, 256, 512], dtype=torch.float64)
    errors = torch.stack(
        [
            (solve_ode(DATA.denoise, x_t, karras_times(int(n) + 1), SOLVERS[name]) - exact)
            .abs()
            .max()
            for n in intervals
        ]
    )
    # Observed 0.98 and 2.00; terms of the next order are still some per cent at 64 intervals.
    assert fitted_order(1 / intervals, errors) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_steps_are_exact_where_the_solution_is_a_straight_line(step: OdeStep) -> None:
    """For a single image as data, D is constant and x_t - x proportional to t."""
    point = Gaussian(mean=-0.4, variance=0.0)
    x_t = noise(3, 1, 2, 2)
    t, s = torch.tensor([[80.0, 1.0, 0.5], [1.0, 0.1, 0.002]], dtype=torch.float64)
    # Float64 to some ulps of x_t.
    torch.testing.assert_close(
        step(point.denoise, x_t, t, s), point.flow(x_t, t, s), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_a_step_of_no_length_changes_nothing(step: OdeStep) -> None:
    x_t, t = noise(3, 1, 2, 2), torch.tensor([80.0, 1.0, 0.002], dtype=torch.float64)
    assert torch.equal(step(DATA.denoise, x_t, t, t), x_t)


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_each_image_takes_the_step_of_its_own_times(step: OdeStep) -> None:
    x_t = noise(3, 1, 2, 2)
    t, s = torch.tensor([[80.0, 1.0, 0.5], [1.0, 0.1, 0.002]], dtype=torch.float64)
    together = step(DATA.denoise, x_t, t, s)
    for i in range(3):
        alone = step(DATA.denoise, x_t[i : i + 1], t[i : i + 1], s[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize(("step", "nfe"), [(euler_step, 18), (heun_step, 35)])
def test_the_number_of_evaluations_and_their_times(step: OdeStep, nfe: int) -> None:
    denoiser, calls = counted(DATA.denoise)
    times = karras_times(18)
    x = solve_ode(denoiser, noise(2, 1, 2, 2), times, step)
    assert len(calls) == nfe and x.dtype == torch.float64
    expected = times if step is euler_step else times.repeat_interleave(2)[1:]
    assert torch.equal(torch.stack(calls), expected[:, None].expand(-1, 2))


def test_images_keep_their_type() -> None:
    """The grid is float64; the network is not."""
    assert solve_ode(DATA.denoise, torch.zeros(1, 1, 2, 2), karras_times(3), heun_step).dtype == (
        torch.float32
    )


@pytest.mark.parametrize(
    ("case", "network", "step"),
    [
        ("heun_18", "uncond", heun_step),
        ("euler_18", "uncond", euler_step),
        ("heun_18_cond", "cond", heun_step),
    ],
)
def test_solutions_equal_the_official_sampler(case: str, network: str, step: OdeStep) -> None:
    stored = golden.arrays("samplers/samplers.npz")
    model, labels = golden.model("edm", network), stored.get(f"{case}.y")

    inputs = []

    def clipped(x_t: Tensor, t: Tensor) -> Tensor:
        inputs.append(x_t)
        return model(x_t, t, labels).clamp(-1, 1)  # clip_denoised of the released code

    denoiser, calls = counted(clipped)
    with torch.no_grad():
        x_t = SIGMA_MAX * stored[f"{case}.noise"][0]
        x = solve_ode(denoiser, x_t, golden.times(18), step)
    # Float32, with the powers of the grid rounded once more.
    sigmas = torch.stack([t[0] for t in calls]).double()
    torch.testing.assert_close(sigmas, stored[f"{case}.sigma_calls"], rtol=1e-6, atol=0)
    # Float32 over 35 evaluations of a random network; observed below 1e-6.
    assert golden.relative_error(inputs[-1], stored[f"{case}.x_last_call"]) < 1e-5
    assert golden.relative_error(x.clamp(-1, 1), stored[f"{case}.out"]) < 1e-5


def test_progressive_distillations_sampler_equals_the_official_one() -> None:
    """N Euler steps on N + 1 times, without the last one to 0."""
    stored = golden.arrays("samplers/samplers.npz")
    model, inputs = golden.model("edm", "uncond"), []

    def clipped(x_t: Tensor, t: Tensor) -> Tensor:
        inputs.append(x_t)
        return model(x_t, t).clamp(-1, 1)

    denoiser, calls = counted(clipped)
    x = SIGMA_MAX * stored["progdist_4.noise"][0]
    with torch.no_grad():
        for t, s in pairwise(karras_times(5).float().expand(len(x), -1).T):
            x = euler_step(denoiser, x, t, s)
    sigmas = torch.stack([t[0] for t in calls]).double()
    # The official time takes a seventh power in float32.
    torch.testing.assert_close(sigmas, stored["progdist_4.sigma_calls"], rtol=2e-6, atol=0)
    # Float32 through four evaluations of the network.
    assert golden.relative_error(inputs[-1], stored["progdist_4.x_last_call"]) < 1e-5
    assert golden.relative_error(x.clamp(-1, 1), stored["progdist_4.out"]) < 1e-5
