"""A network, images and recipes small enough to train within a test."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cmrepro.checkpoints.load import load_model
from cmrepro.data import synthetic
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS
from cmrepro.settings import Recipe
from cmrepro.training.loop import train
from cmrepro.training.recipes import load_recipe
from cmrepro.training.state import state_files
from cmrepro.training.step import Training

SIZE = 8
DATA = synthetic(10, SIZE)
TINY = ADMConfig(32, (1,), 1, (), 32)


@contextlib.contextmanager
def tiny_networks() -> Iterator[None]:
    """Inside it the presets "tiny" and "deep" exist."""
    networks = {"tiny": TINY, "deep": dataclasses.replace(TINY, num_res_blocks=2)}
    with pytest.MonkeyPatch.context() as patch:
        for name, config in networks.items():
            patch.setitem(PRESETS, name, (UNet, config))
            patch.setitem(IMAGE_SIZES, name, SIZE)
        yield


def tiny_recipe(method: str, **changes: Any) -> Recipe:
    """A demo recipe on "tiny", with dropout, so that a resumed run must repeat its masks too."""
    tiny: dict[str, Any] = {
        "network": "tiny",
        "batch_size": 3,
        "total_steps": 20,
        "dropout": 0.1,
        "ema_rate": 0.9,
        "schedule_steps": None,
        "inverse_sqrt_after": None,
        "linear_decay_share": None,
    }
    consistency = (
        {}
        if method in ("edm", "pd")
        else {"distance": "pseudo-huber", "weighting": None, "s1": 10}
    )
    return load_recipe(f"demo-cifar10-{method}").replace(**(tiny | consistency | changes))


def tiny_train(
    recipe: Recipe,
    out: pathlib.Path,
    data: Any = DATA,
    *,
    seed: int = 0,
    teacher: pathlib.Path | None = None,
    precision: str | None = None,
    **settings: Any,
) -> pathlib.Path:
    """Train a recipe; returns the checkpoint's path."""
    model = None if teacher is None else load_model(teacher)
    return train(Training(recipe, seed, model, precision=precision), data, out, **settings)


def state_of(folder: pathlib.Path) -> dict[str, Any]:
    """The newest state of a run without its duration, which alone may differ."""
    state = torch.load(state_files(folder)[0], weights_only=True)
    del state["duration_s"]
    return state


def state_names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in state_files(folder))


def assert_equal(a: Any, b: Any) -> None:
    """Equality bit for bit, through dictionaries and sequences."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b
