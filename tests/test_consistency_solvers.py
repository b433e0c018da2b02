"""Steps and solutions of the probability-flow ODE on Gaussian data, where they are known."""

from collections.abc import Callable
from itertools import pairwise

import golden
import pytest
import torch
from gaussian import SIGMA_MAX, SIGMA_MIN, Gaussian, fitted_order, noise
from torch import Tensor

from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import OdeStep, euler_step, heun_step, solve_ode

DATA = Gaussian()
# Order p means a local error O(h^(p + 1)) and a global one O(h^p).
ORDERS = pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (heun_step, 2)])


class Recorded:
    """A denoiser that keeps its inputs."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser = denoiser
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls.append((x_t, t))
        return self.denoiser(x_t, t)

    def times(self) -> Tensor:
        """(calls, B)."""
        return torch.stack([t for _, t in self.calls])


@ORDERS
def test_one_step_has_the_local_order(step: OdeStep, order: int) -> None:
    h = 0.5 ** torch.arange(3, 9, dtype=torch.float64)
    x_t, t = noise(1, 1, 2, 2).expand(len(h), -1, -1, -1), torch.ones_like(h)
    error = (step(DATA.denoise, x_t, t, t - h) - DATA.flow(x_t, t, t - h)).abs().flatten(1).sum(1)
    # The next term of the error is smaller by h, so that from h = 1/8 on the fit is off by < 0.1.
    assert fitted_order(h, error) == pytest.approx(order + 1, abs=0.1)


@ORDERS
def test_the_solution_converges_with_the_order_of_the_method(step: OdeStep, order: int) -> None:
    x_t = SIGMA_MAX * noise(4, 1, 2, 2)
    start, end = (torch.full((4,), t, dtype=torch.float64) for t in (SIGMA_MAX, SIGMA_MIN))
    # The last step, from sigma_min to 0, is Euler's and returns D(x, sigma_min).
    exact = DATA.denoise(DATA.flow(x_t, start, end), end)
    intervals = torch.tensor([64, 128, 256, 512], dtype=torch.float64)
    errors = [
        (solve_ode(DATA.denoise, x_t, karras_times(int(n) + 1), step) - exact).abs().max()
        for n in intervals
    ]
    # Observed 0.98 and 2.00; terms of the next order are still some per cent at 64 intervals.
    assert fitted_order(1 / intervals, torch.stack(errors)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_steps_are_exact_on_a_straight_line_each_image_with_its_times(step: OdeStep) -> None:
    """For a single image as data, D is constant and x_t - x proportional to t."""
    point, x_t = Gaussian(mean=-0.4, variance=0.0), noise(3, 1, 2, 2)
    t, s = torch.tensor([[80.0, 1.0, 0.5], [1.0, 0.1, 0.002]], dtype=torch.float64)
    # Float64 to some ulps of x_t.
    torch.testing.assert_close(
        step(point.denoise, x_t, t, s), point.flow(x_t, t, s), rtol=0, atol=1e-14
    )
    assert torch.equal(step(DATA.denoise, x_t, t, t), x_t)


@pytest.mark.parametrize(("step", "nfe"), [(euler_step, 18), (heun_step, 35)])
def test_the_number_of_evaluations_and_their_times(step: OdeStep, nfe: int) -> None:
    denoiser, times = Recorded(DATA.denoise), karras_times(18)
    solve_ode(denoiser, noise(2, 1, 2, 2), times, step)
    assert len(denoiser.calls) == nfe
    expected = times if step is euler_step else times.repeat_interleave(2)[1:]
    assert torch.equal(denoiser.times(), expected[:, None].expand(-1, 2))
    x = solve_ode(DATA.denoise, torch.zeros(1, 1, 2, 2), times, step)
    assert x.dtype == torch.float32  # that of the images; the grid is float64


@pytest.mark.parametrize(
    ("case", "network", "step"),
    [
        ("heun_18", "uncond", heun_step),
        ("euler_18", "uncond", euler_step),
        ("heun_18_cond", "cond", heun_step),
        ("progdist_4", "uncond", euler_step),
    ],
)
def test_solutions_equal_the_official_sampler(case: str, network: str, step: OdeStep) -> None:
    stored = golden.arrays("samplers/samplers.npz", f"{case}.")
    model, labels = golden.model("edm", network), stored.get("y")
    # clip_denoised of the released code
    denoiser = Recorded(lambda x_t, t: model(x_t, t, labels).clamp(-1, 1))
    x = SIGMA_MAX * stored["noise"][0]
    with torch.no_grad():
        if case == "progdist_4":  # N Euler steps on N + 1 times, without the last one to 0
            for t, s in pairwise(karras_times(5).float().expand(len(x), -1).T):
                x = step(denoiser, x, t, s)
        else:
            x = solve_ode(denoiser, x, golden.times(18), step)
    # The official times take seventh powers in float32.
    sigmas = denoiser.times()[:, 0].double()
    torch.testing.assert_close(sigmas, stored["sigma_calls"], rtol=2e-6, atol=0)
    # Float32 over up to 35 evaluations of a random network; observed below 1e-6.
    assert golden.relative_error(denoiser.calls[-1][0], stored["x_last_call"]) < 1e-5
    assert golden.relative_error(x.clamp(-1, 1), stored["out"]) < 1e-5
