"""Algorithm 1: the distribution it keeps, shared stages, diffusers and the official code."""

import math

import golden
import pytest
import torch
from gaussian import SIGMA_MAX, SIGMA_MIN, Gaussian, noise
from random_weights import randomise
from torch import Tensor

from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.samplers import check_times, multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.networks.adm import UNet


@pytest.mark.parametrize(
    ("variance", "times"),
    [
        (0.25, (80.0, 24.4, 5.84, 0.9, 0.661)),
        # Data narrower than the last times, so that sigma_min^2 in the noise's variance shows:
        # without it the last variance would be 40 % too large.
        (1e-6, (80.0, 0.1, 0.003)),
    ],
)
def test_exact_consistency_function_keeps_the_distribution_of_the_data(
    variance: float, times: tuple[float, ...]
) -> None:
    data = Gaussian(variance=variance)
    z = noise(len(times), 100, 3, 16, 16)
    expected = variance + SIGMA_MIN**2  # f ends at sigma_min
    for x in multistep_stages(data.consistency, times, z, clip_denoised=False):
        # Five standard errors of n independent normal values. Starting from N(0, 80^2) instead
        # of the marginal at 80 shifts mean and deviation by under 0.4 % of the deviation.
        tolerance = 5 / math.sqrt(x.numel())
        shift = data.mean / math.sqrt(variance + SIGMA_MAX**2)
        deviation = math.sqrt(expected)
        assert x.mean().item() == pytest.approx(data.mean, abs=(tolerance + shift) * deviation)
        assert x.var().item() / expected == pytest.approx(1, abs=tolerance * math.sqrt(2) + 1e-4)


@pytest.mark.parametrize(("clip", "first"), [(True, 1.0), (False, 80.0)])
def test_images_are_clipped_before_noise_is_added_one_stage_at_a_time(
    clip: bool, first: float
) -> None:
    inputs = []

    def identity(x_t: Tensor, t: Tensor) -> Tensor:
        inputs.append(x_t)
        return x_t

    z = torch.ones(2, 1, 1, 2, 2)
    stages = multistep_stages(identity, (80.0, 0.5), z, clip_denoised=clip)
    assert torch.equal(next(stages), torch.full_like(z[0], first))
    assert len(inputs) == 1
    second = first + math.sqrt(0.5**2 - SIGMA_MIN**2)
    torch.testing.assert_close(next(stages), torch.full_like(z[0], 1.0 if clip else second))
    torch.testing.assert_close(inputs[1], torch.full_like(z[0], second))


def test_algorithm_1_equals_that_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network, noise and times; diffusers' grid and scalings."""
    f = PreconditionedModel(randomise(UNet(golden.ADM["uncond"])), "boundary").eval()
    diffusers, indices = pytest.importorskip("diffusers"), [0, 22, 33]
    z, times = noise(3, 2, 3, 8, 8).float(), karras_times(40)[indices].tolist()
    later = iter([*z[1:], torch.zeros_like(z[0])])  # noise after the last step has deviation 0
    module = diffusers.schedulers.scheduling_consistency_models
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(later))
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    scheduler.set_timesteps(timesteps=indices[::-1])
    x_t = scheduler.init_noise_sigma * z[0]
    with torch.no_grad():
        *_, x = multistep_stages(f, times, z)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, timestep)
            output = f.network(scaled, (timestep / 1000).float().expand(2))
            x_t = scheduler.step(output, timestep, x_t, return_dict=False)[0]
    assert (x.abs() < 1).any(), "all values clipped: the comparison would be empty"
    # Float32, with times that differ in the last digit.
    torch.testing.assert_close(x, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "network", "num_scales", "indices"),
    [
        ("onestep", "uncond", 40, [0]),
        ("multistep_0_22_39_of40", "uncond", 40, [0, 22]),
        ("multistep_0_106_200_of201", "cond", 201, [0, 106]),
    ],
)
def test_stages_equal_the_official_sampler(
    case: str, network: str, num_scales: int, indices: list[int]
) -> None:
    """Its last index is sigma_min, to which it adds noise of deviation 0 and no evaluation."""
    stored = golden.arrays("samplers/samplers.npz", f"{case}.")
    model, times = golden.model("boundary", network), karras_times(num_scales)[indices]
    # The official time is computed in float32.
    torch.testing.assert_close(times, stored["sigma_calls"], rtol=2e-6, atol=0)
    with torch.no_grad():
        *_, x = multistep_stages(
            lambda x_t, t: model(x_t, t, stored.get("y")),
            times.tolist(),
            stored["noise"][: len(indices)],
        )
    # Float32 through one or two evaluations of the network.
    assert golden.relative_error(x, stored["out"]) < 1e-5


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ((), "none"),
        ((0.8, 80.0), "0.8, 80"),
        ((80.1,), "80.1"),
        ((80.0, 0.002), "80, 0.002"),
        ((80.0, math.nan, 0.8), "80, nan, 0.8"),
    ],
)
def test_impossible_times_are_refused(times: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=f"times {named}; .* 0.002 < t <= 80"):
        check_times(times, SIGMA_MIN, SIGMA_MAX)
