"""Time grid, N(k) and mu(k): closed forms, diffusers, and tables of the official code."""

import bisect
import math

import golden
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrepro.consistency.schedules import karras_times, num_scales_at, target_ema_at

# (s0, s1, mu0, K) of the progressive schedules in Table 3.
CIFAR10, IMAGENET64 = (2, 150, 0.9, 800_000), (2, 200, 0.95, 800_000)
LSUN256 = (2, 150, 0.95, 1_000_000)


@settings(deadline=None)  # other work on the machine
@given(st.integers(2, 1280), st.floats(1e-4, 1), st.floats(1.5, 1e5), st.floats(1, 10))
def test_grid_falls_in_equal_steps_of_the_root_between_exact_ends(
    num_scales: int, sigma_min: float, ratio: float, rho: float
) -> None:
    times = karras_times(num_scales, sigma_min, sigma_min * ratio, rho)
    assert times.dtype == torch.float64 and times.shape == (num_scales,)
    assert (times[0], times[-1]) == (sigma_min * ratio, sigma_min)
    assert (times.diff() < 0).all()
    roots = times.pow(1 / rho)
    # Some ulps of the roots remain when they are subtracted.
    tolerance = 1e-14 * roots[0].item()
    steps = roots.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_scales", [2, 18, 40, 151])
def test_grid_equals_those_of_diffusers_and_of_the_official_losses(num_scales: int) -> None:
    times = karras_times(num_scales)
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=num_scales)
    # Seventh powers in float64 round by about ten ulps.
    torch.testing.assert_close(times, scheduler.sigmas, rtol=1e-14, atol=0)
    stored = golden.arrays("karras/time_grids.npz")
    expected = {f"train_t_N{num_scales}": times[:-1], f"train_tnext_N{num_scales}": times[1:]}
    if num_scales in (18, 40):  # the sampler's last time is 0, which solve_ode adds
        expected[f"get_sigmas_karras_{num_scales}"] = torch.cat([times, times.new_zeros(1)])
    for name, got in expected.items():
        # The official grid takes seventh powers in float32: 7 x 2 ulps of the root.
        torch.testing.assert_close(got, stored[name].double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1,), "num_scales = 1"),
        ((2, 0.0, 80.0), "sigma_min = 0.0"),
        ((2, math.nan, 80.0), "sigma_min = nan"),
    ],
)
def test_impossible_grid_is_refused(arguments: tuple[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        karras_times(*arguments)


@pytest.mark.parametrize(("s0", "s1", "mu0", "total_steps"), [CIFAR10, IMAGENET64, LSUN256])
def test_schedules_start_and_end_as_the_paper_says(
    s0: int, s1: int, mu0: float, total_steps: int
) -> None:
    first, last = (num_scales_at(step, total_steps, s0, s1) for step in (0, total_steps))
    assert (first, last) == (s0, s1 + 1)
    exact = pytest.approx  # one exponential and one logarithm in float64
    assert target_ema_at(first, s0, mu0) == exact(mu0, rel=1e-15)
    assert target_ema_at(last, s0, mu0) == exact(mu0 ** (s0 / (s1 + 1)), rel=1e-15)


@pytest.mark.parametrize(("name", "schedule"), [("imagenet64", IMAGENET64), ("lsun256", LSUN256)])
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
    s0, s1, mu0, total_steps = CIFAR10
    stored = {k: v.tolist() for k, v in golden.arrays("schedules/cifar10_ct.npz").items()}
    changes = stored["change_step"]
    assert stored["change_num_scales"] == list(range(s0 + 1, s1 + 2))
    near = {k + offset for k in (*changes, *stored["step"]) for offset in (-1, 0, 1)}
    differing = [
        step
        for step in sorted(near & set(range(total_steps + 1)))
        if num_scales_at(step, total_steps, s0, s1) != s0 + bisect.bisect(changes, step)
    ]
    # JAX evaluates N(k) in float32.
    assert differing == sorted(stored["f32_vs_f64_differing_steps"])
    decays = [target_ema_at(n, s0, mu0, "released") for n in stored["num_scales"]]
    # Computed in float32 there: an ulp of 1 is 6e-8.
    assert decays == pytest.approx(stored["target_ema"], abs=1.2e-7)
