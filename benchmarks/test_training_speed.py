"""Speed of a training step against its bare network passes and optimizer update."""

import copy

import pytest
import torch

from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.data import synthetic
from cmrepro.networks.presets import build_network
from cmrepro.training.data import BatchSource, prefetched
from cmrepro.training.recipes import load_recipe
from cmrepro.training.step import Training

DATA = synthetic(512)
BATCH_SIZE = 4  # small, for the time of many pairs; the fixed work of a step weighs more then


def training_of(method):
    """A run of the demo's size in the midst of its schedules."""
    recipe = load_recipe(f"demo-cifar10-{method}").replace(distance="l2", batch_size=BATCH_SIZE)
    teacher = PreconditionedModel(build_network(recipe.network), "edm") if method == "cd" else None
    training = Training(recipe, seed=0, teacher=teacher)
    training.step = 1000
    return training


def batches_of(training):
    steps = range(training.step, training.recipe.total_steps)
    return prefetched(BatchSource(DATA, training.recipe, 0), steps, training.device)


@pytest.mark.parametrize("method", ["cd", "ct"])
def test_step_over_bare_passes(benchmark, gate, method):
    """What is on top: batch, noise, scalings, gradient check and both averages."""
    training = training_of(method)
    batches = batches_of(training)
    online = copy.deepcopy(training.online.network)
    optimizer = type(training.optimizer)(online.parameters(), lr=1e-4, foreach=True)
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
        training.train_step(next(batches))

    benchmark.pedantic(ours, rounds=2, warmup_rounds=1)
    gate.ratio(f"{method} step over bare passes", ours, bare, at_most=1.25)
    batches.close()


def test_averages_over_step(benchmark, gate):
    training = training_of("ct")
    batches = batches_of(training)
    assert training.target is not training.online

    benchmark.pedantic(training.update_target_and_ema, rounds=5, warmup_rounds=1)
    gate.bound(
        "averages over a step",
        training.update_target_and_ema,
        lambda: training.train_step(next(batches)),
        at_most=0.05,
    )
    batches.close()
