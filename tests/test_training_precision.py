"""Half precision for the passes of the networks alone."""

import pathlib
from typing import Any

import pytest
import torch
from tiny import DATA, tiny_recipe
from torch import Tensor, nn

from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.distances import pseudo_huber
from cmrepro.training.data import BatchSource
from cmrepro.training.step import Training

pytestmark = pytest.mark.usefixtures("networks")

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def training_of(method: str, teacher: pathlib.Path, **settings: Any) -> Training:
    changes = {"target_ema": 0.5} if method == "cd" else {}
    recipe = tiny_recipe(method, dropout=0.0, **changes)
    model = load_model(teacher) if method == "cd" else None
    return Training(recipe, 0, model, **settings)


def run(training: Training, steps: int) -> list[float]:
    source = BatchSource(DATA, training.recipe, 0)
    return [training.train_step(source.batch(training.step)) for _ in range(steps)]


def modules(training: Training) -> list[nn.Module]:
    every = [training.online, training.target, training.ema, training.teacher]
    return [module for module in every if module is not None]


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("method", ["edm", "cd", "ct"])
def test_passes_are_in_half_precision_and_all_that_is_kept_in_float32(
    teacher: pathlib.Path, method: str, precision: str
) -> None:
    compared: set[torch.dtype] = set()

    def watched(x: Tensor, y: Tensor) -> Tensor:
        compared.update((x.dtype, y.dtype))
        return pseudo_huber(x, y)

    training = training_of(method, teacher, precision=precision, distance=watched)
    seen: dict[nn.Module, set[torch.dtype]] = {}
    passing = [model for model in dict.fromkeys(modules(training)) if model is not training.ema]
    for model in passing:
        types = seen[model] = set()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, y, types=types: types.add(y.dtype))
    run(training, 7)  # RAdam adapts from step 6 on
    assert seen == {model: {HALF[precision]} for model in passing}
    assert compared <= {torch.float32}
    kept = [tensor for model in modules(training) for tensor in model.state_dict().values()]
    kept += [p.grad for p in training.online.parameters() if p.grad is not None]
    for moments in training.optimizer.state.values():
        kept += moments.values()
    assert {tensor.dtype for tensor in kept} == {torch.float32}


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 4e-3)])
@pytest.mark.parametrize("method", ["edm", "cd", "ct"])
def test_half_precision_trains_nearly_as_float32(
    teacher: pathlib.Path, method: str, precision: str, tolerance: float
) -> None:
    """Losses to some roundings of 2^-8 or 2^-11; the scale of the loss does not show in them."""
    exact = run(training_of(method, teacher), 8)
    assert run(training_of(method, teacher, precision=precision), 8) == pytest.approx(
        exact, rel=tolerance
    )


def test_an_overflow_repeats_the_step_with_half_the_scale(teacher: pathlib.Path) -> None:
    """So that the steps see what they see in other precisions, and none is lost."""
    training, usual = (training_of("edm", teacher, precision="fp16") for _ in range(2))
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    losses = run(training, 2)
    assert training.step == 2
    assert 1 < training.scaler.get_scale() < 2.0**60
    assert losses == pytest.approx(run(usual, 2), rel=1e-3)  # a scale is a power of two
    for a, b in zip(training.ema.parameters(), usual.ema.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
