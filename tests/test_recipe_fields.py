"""No field of a recipe is decoration: training or its checkpoint depends on each."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import DATA, tiny_networks, tiny_recipe

from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.schedules import karras_times
from cmrepro.training.batches import Batch, BatchSource
from cmrepro.training.loop import train
from cmrepro.training.recipes import Recipe, load_recipe
from cmrepro.training.schedules import two_step_time
from cmrepro.training.step import Training


@pytest.fixture(autouse=True)
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


class WatchedRecipe(Recipe):
    """A recipe that notes which fields are read, other than by copying it whole."""

    read: set[str] = set()  # noqa: RUF012

    def __getattribute__(self, name: str) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        if "dataclasses" not in caller and "recipes.py" not in caller:
            WatchedRecipe.read.add(name)
        return super().__getattribute__(name)


def watched(recipe: Recipe) -> WatchedRecipe:
    return WatchedRecipe(**dataclasses.asdict(recipe))


def test_training_reads_every_field(tmp_path: pathlib.Path) -> None:
    runs = [
        tiny_recipe("edm", total_steps=1),
        tiny_recipe("cd", total_steps=1, two_step_index=3),
        tiny_recipe("ct", total_steps=1),
        tiny_recipe("cd", total_steps=1, num_scales=4, s0=None, s1=None),
    ]
    teacher = None
    for i, recipe in enumerate(runs):
        path = train(
            watched(recipe),
            DATA,
            tmp_path / str(i),
            teacher=teacher if recipe.method == "cd" else None,
        )
        teacher = teacher or path
    fields = {field.name for field in dataclasses.fields(Recipe)}
    # The variant is the recipe's label: what it stands for is in the other fields.
    assert fields - WatchedRecipe.read == {"variant"}


@pytest.mark.parametrize("method", ["edm", "ct"])
def test_the_parts_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A loss is a mean over images: its gradient in parts is that of the whole, up to rounding.

    A batch of 7 goes whole, in parts of 3, 3 and 1 (the devices do not divide it, and each image
    has the same weight), and one by one.
    """
    sizes: list[int] = []
    original = Training.loss

    def counted(training: Training, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        return original(training, batch)

    monkeypatch.setattr(Training, "loss", counted)
    gradients, losses = [], []
    for num_gpus, micro_batch in ((1, None), (3, None), (1, 1)):
        recipe = tiny_recipe(method, batch_size=7, dropout=0.0, num_gpus=num_gpus)
        training = Training(recipe, 0, micro_batch=micro_batch)
        losses.append(training.gradients(BatchSource(DATA, recipe, 0).batch(0)).item())
        gradients.append(training.online.network.out[2].weight.grad.clone())
    assert sizes == [7, 3, 3, 1, *[1] * 7]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)  # float32 sums in another order
        assert torch.allclose(gradient, gradients[0], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "time"),
    # Computed from the indices of scripts/launch.sh and the notebook, to four decimals.
    [
        ("cifar10-cd", 0.5853),
        ("imagenet64-cd", 1.3824),
        ("imagenet64-ct", 1.9128),
        ("lsun-bedroom256-cd", 4.3656),
        ("lsun-bedroom256-ct", 3.9912),
        ("lsun-cat256-ct", 5.2485),
    ],
)
def test_second_times_are_those_of_the_official_commands(name: str, time: float) -> None:
    assert two_step_time(load_recipe(name)) == pytest.approx(time, abs=5e-5)


def test_the_second_time_reaches_the_checkpoint(tmp_path: pathlib.Path) -> None:
    path = train(tiny_recipe("ct", total_steps=1, two_step_index=4), DATA, tmp_path)
    assert load_model(path).info.two_step_time == karras_times(11)[4].item()
    assert two_step_time(load_recipe("lsun-cat256-cd")) is None
