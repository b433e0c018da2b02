"""A network, images and recipes small enough to train within a test."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from cmrepro.data import synthetic
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS
from cmrepro.settings import Recipe
from cmrepro.training.recipes import load_recipe

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
    consistency = {} if method == "edm" else {"distance": "pseudo-huber", "s1": 10}
    return load_recipe(f"demo-cifar10-{method}").replace(**(tiny | consistency | changes))
