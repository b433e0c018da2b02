"""Time grid, N(k) and mu(k): closed forms, diffusers, and tables of the official code."""

import bisect
import math
from fractions import Fraction

import golden
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrepro.consistency.schedules import karras_times, num_scales_at, target_ema_at

# (s0, s1, mu0, K) of the progressive schedules in Table 3: CIFAR-10, ImageNet 64, LSUN.
CT_SCHEDULES = [
    (2, 150, 0.9, 800_000),
    (2, 200, 0.95, 800_000),
    (2, 150, 0.95, 1_000_000),
]


def exact_num_scales(step: int, total_steps: int, s0: int, s1: int) -> int:
    """N(k) without roots: N - 1 is the smallest n >= 1 with (n + 1)^2 >= the radicand."""
    radicand = Fraction(step * ((s1 + 1) ** 2 - s0**2), total_steps) + s0**2
    root = math.isqrt(math.ceil(radicand) - 1) + 1  # ceil(sqrt(radicand))
    return max(root - 1, 1) + 1


@pytest.mark.parametrize("num_scales", [2, 3, 18, 40, 151, 1280])
@pytest.mark.parametrize(("sigma_min", "sigma_max", "rho"), [(0.002, 80, 7), (0.01, 1, 3)])
def test_grid_is_uniform_in_the_root_and_has_exact_ends(
    num_scales: int, sigma_min: float, sigma_max: float, rho: float
) -> None:
    times = karras_times(num_scales, sigma_min, sigma_max, rho)
    assert times.dtype == torch.float64 and times.shape == (num_scales,)
    assert times[0] == sigma_max and times[-1] == sigma_min
    assert (times.diff() < 0).all()
    steps = times.pow(1 / rho).diff()
    # Roots of size 2 subtract to steps of 1e-3: some ulps of the root remain.
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_scales", [2, 18, 40, 151])
def test_grid_equals_that_of_diffusers(num_scales: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=num_scales)
    # Seventh powers in float64 round by about ten ulps.
    torch.testing.assert_close(karras_times(num_scales), scheduler.sigmas, rtol=1e-14, atol=0)


@pytest.mark.parametrize("num_scales", [2, 18, 40, 151])
def test_grid_equals_that_of_the_official_losses(num_scales: int) -> None:
    stored = golden.arrays("karras/time_grids.npz")
    times = karras_times(num_scales)
    # The official grid takes seventh powers in float32: 7 x 2 ulps of the root.
    for name, got in (("train_t", times[:-1]), ("train_tnext", times[1:])):
        expected = stored[f"{name}_N{num_scales}"].double()
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    if num_scales in (18, 40):
        expected = stored[f"get_sigmas_karras_{num_scales}"].double()
        assert expected[-1] == 0  # the sampler's last time, which solve_ode adds
        torch.testing.assert_close(times, expected[:-1], rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1,), "num_scales = 1"),
        ((0,), "num_scales = 0"),
        ((2, 0.0, 80.0), "sigma_min = 0.0"),
        ((2, -0.1, 80.0), "sigma_min = -0.1"),
        ((2, 80.0, 80.0), "sigma_max = 80.0"),
        ((2, 80.0, 0.002), "sigma_max = 0.002"),
        ((2, math.nan, 80.0), "sigma_min = nan"),
    ],
)
def test_impossible_grid_is_refused(arguments: tuple[int], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        karras_times(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("s0", "s1", "mu0", "total_steps"), CT_SCHEDULES)
def test_schedules_start_and_end_as_the_paper_says(
    s0: int, s1: int, mu0: float, total_steps: int
) -> None:
    first = num_scales_at(0, total_steps, s0, s1)
    last = num_scales_at(total_steps, total_steps, s0, s1)
    assert (first, last) == (s0, s1 + 1)
    exact = pytest.approx  # one exponential and one logarithm in float64
    assert target_ema_at(first, s0, mu0) == exact(mu0, rel=1e-15)
    assert target_ema_at(last, s0, mu0) == exact(mu0 ** (s0 / (s1 + 1)), rel=1e-15)
    assert target_ema_at(first, s0, mu0, "released") == exact(mu0 ** (s0 / (s0 - 1)), rel=1e-15)
    assert target_ema_at(last, s0, mu0, "released") == exact(mu0 ** (s0 / s1), rel=1e-15)


@settings(deadline=None)  # other work on the machine
@given(st.integers(2, 400), st.floats(1e-4, 1), st.floats(1.5, 1e5), st.floats(1, 10))
def test_any_grid_falls_from_end_to_end(
    num_scales: int, sigma_min: float, ratio: float, rho: float
) -> None:
    times = karras_times(num_scales, sigma_min, sigma_min * ratio, rho)
    assert (times[0], times[-1]) == (sigma_min * ratio, sigma_min)
    assert (times[1:] < times[:-1]).all()


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 10**6), st.data())
def test_any_schedule_equals_integer_arithmetic_between_its_ends(
    s0: int, more: int, total_steps: int, data: st.DataObject
) -> None:
    s1, step = s0 + more, data.draw(st.integers(0, total_steps))
    found = num_scales_at(step, total_steps, s0, s1)
    assert max(s0, 2) <= found <= s1 + 1
    # A root within rounding of an integer may fall on either side of it.
    assert found - exact_num_scales(step, total_steps, s0, s1) in (0, 1)


@pytest.mark.parametrize(("s0", "s1", "mu0", "total_steps"), CT_SCHEDULES)
def test_schedules_are_monotone_and_equal_integer_arithmetic(
    s0: int, s1: int, mu0: float, total_steps: int
) -> None:
    steps = range(0, total_steps + 1, 97)
    scales = [num_scales_at(step, total_steps, s0, s1) for step in steps]
    assert scales == [exact_num_scales(step, total_steps, s0, s1) for step in steps]
    assert scales == sorted(scales) and set(scales) >= set(range(s0, s1 + 1))
    for form in ("paper", "released"):
        decays = [target_ema_at(n, s0, mu0, form) for n in range(s0, s1 + 2)]
        assert decays == sorted(set(decays)) and decays[0] > 0 and decays[-1] < 1


def test_one_starting_point_is_one_interval() -> None:
    """s0 = 1 would give a grid of one point; both repositories clamp the intervals to 1."""
    assert num_scales_at(0, 100, 1, 10) == 2
    assert num_scales_at(100, 100, 1, 10) == 11


@pytest.mark.parametrize(
    ("name", "schedule"), [("imagenet64", CT_SCHEDULES[1]), ("lsun256", CT_SCHEDULES[2])]
)
def test_schedules_equal_the_released_pytorch_ones(
    name: str, schedule: tuple[int, int, float, int]
) -> None:
    s0, s1, mu0, total_steps = schedule
    stored = golden.arrays(f"schedules/{name}_ct.npz")
    for part in ("", "change_", "beyond_"):
        scales = [num_scales_at(k, total_steps, s0, s1) for k in stored[f"{part}step"].tolist()]
        assert scales == stored[f"{part}num_scales"].tolist()
        decays = [target_ema_at(n, s0, mu0, "released") for n in scales]
        # numpy's and the C library's exp and log may differ in the last digit.
        assert decays == pytest.approx(stored[f"{part}target_ema"].tolist(), rel=1e-15)
    before = [num_scales_at(k - 1, total_steps, s0, s1) for k in stored["change_step"].tolist()]
    assert before == (stored["change_num_scales"] - 1).tolist()


def test_schedule_equals_the_released_jax_one_but_for_float32() -> None:
    s0, s1, mu0, total_steps = CT_SCHEDULES[0]
    stored = golden.arrays("schedules/cifar10_ct.npz")
    changes = stored["change_step"].tolist()
    assert stored["change_num_scales"].tolist() == list(range(s0 + 1, s1 + 2))
    near_changes = {k + offset for k in changes for offset in (-1, 0, 1)}
    steps = sorted(near_changes.union(stored["step"].tolist()) & set(range(total_steps + 1)))
    differing = {
        step: num_scales_at(step, total_steps, s0, s1) - (s0 + bisect.bisect(changes, step))
        for step in steps
        if num_scales_at(step, total_steps, s0, s1) != s0 + bisect.bisect(changes, step)
    }
    # There JAX, which evaluates N(k) in float32, is one off for one step.
    assert sorted(differing) == sorted(stored["f32_vs_f64_differing_steps"].tolist())
    assert {abs(difference) for difference in differing.values()} == {1}
    # Computed in float32 there: an ulp of 1 is 6e-8.
    ulps = {"abs": 1.2e-7}
    decays = [target_ema_at(n, s0, mu0, "released") for n in range(s0 + 1, s1 + 2)]
    assert decays == pytest.approx(stored["change_target_ema"].tolist(), **ulps)
    scales = stored["num_scales"].tolist()
    assert scales == [s0 + bisect.bisect(changes, step) for step in stored["step"].tolist()]
    decays = [target_ema_at(n, s0, mu0, "released") for n in scales]
    assert decays == pytest.approx(stored["target_ema"].tolist(), **ulps)
