"""Does two-step sampling cost more than the two network evaluations it needs?"""

import torch
from timing import least_seconds

from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.experiments.sampling import BATCH_SIZE, SamplerSettings, sample
from cmrepro.networks.presets import build_network

# Noise, scalings, clipping and rounding; they measure 3 % here, the rest is the machine's noise.
LARGEST_RATIO = 1.25


def demo_model() -> PreconditionedModel:
    torch.manual_seed(0)
    model = PreconditionedModel(build_network("demo"), "boundary")
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def test_two_steps_against_two_bare_evaluations(benchmark):
    model = demo_model()
    settings = SamplerSettings("multistep", (80.0, 0.8))
    x = torch.randn(BATCH_SIZE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    c_noise = torch.zeros(BATCH_SIZE)

    @torch.inference_mode()
    def bare():
        model.network(x, c_noise)
        model.network(x, c_noise)

    def ours():
        return sample(model, settings, BATCH_SIZE, seed=0, image_size=32)

    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    ours_s, bare_s = least_seconds(ours, bare)
    benchmark.extra_info["ratio to bare"] = ours_s / bare_s
    assert ours_s / bare_s < LARGEST_RATIO
