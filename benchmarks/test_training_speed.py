"""Does a training step cost more than its network passes and optimizer update, done bare?"""

import copy

import pytest
import torch
from timing import least_seconds

from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.datasets import synthetic
from cmrepro.networks.presets import build_network
from cmrepro.training.batches import BatchSource
from cmrepro.training.loop import Training
from cmrepro.training.recipes import load_recipe

BATCH_SIZE = 16
# Batch, noise, scalings, gradient check and both averages; the rest is the machine's noise.
LARGEST_RATIO = 1.35


@pytest.mark.parametrize("method", ["cd", "ct"])
def test_step_against_bare_passes(benchmark, method):
    recipe = load_recipe(f"demo-cifar10-{method}").replace(batch_size=BATCH_SIZE, distance="l2")
    teacher = PreconditionedModel(build_network("demo"), "edm") if method == "cd" else None
    training = Training(recipe, seed=0, teacher=teacher)
    training.step = recipe.total_steps // 2  # RAdam and N(k) as in the midst of training
    source = BatchSource(synthetic(64), BATCH_SIZE, horizontal_flip=True, seed=0)

    online = copy.deepcopy(training.online.network)
    optimizer = torch.optim.RAdam(online.parameters(), lr=1e-4, foreach=True)
    x = torch.randn(BATCH_SIZE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    c_noise = torch.zeros(BATCH_SIZE)

    def bare():
        with torch.no_grad():
            for _ in range(3 if method == "cd" else 1):  # target, and the teacher twice for CD
                online(x, c_noise)
        optimizer.zero_grad(set_to_none=True)
        online(x, c_noise).square().mean().backward()
        optimizer.step()

    def ours():
        training.train_step(source)

    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    ours_s, bare_s = least_seconds(ours, bare)
    benchmark.extra_info["ratio to bare"] = ours_s / bare_s
    assert ours_s / bare_s < LARGEST_RATIO
