"""A checkpoint of a network too small to matter, for tests of sampling and scoring."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from records_of import demo_recipe

from cmrepro import sampling
from cmrepro.checkpoints.io import save_checkpoint
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.records import CheckpointInfo
from cmrepro.schema import convert

CONFIGS = {
    "tiny": ADMConfig(32, (1,), 1, (), 32),
    "classes": ADMConfig(32, (1,), 1, (), 32, num_classes=5),
}


@contextlib.contextmanager
def tiny_presets() -> Iterator[None]:
    """Context in which the networks "tiny" and "classes" exist and batches have 4 images."""
    with pytest.MonkeyPatch.context() as patch:
        for name, config in CONFIGS.items():
            patch.setitem(presets.PRESETS, name, (UNet, config))
            patch.setitem(presets.IMAGE_SIZES, name, 8)
        patch.setattr(sampling, "BATCH_SIZE", 4)
        yield


def save_tiny(path: pathlib.Path, network: str = "tiny", **changes: Any) -> pathlib.Path:
    """Write a checkpoint with random weights; `changes` are fields of its header."""
    torch.manual_seed(1)
    model = UNet(CONFIGS[network])
    for parameter in model.parameters():  # the zero-initialised output would hide everything
        torch.nn.init.normal_(parameter, std=0.1)
    fields = {
        "network": network,
        "parameterization": "boundary",
        "sigma_data": 0.5,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "recipe": demo_recipe("cd"),
        "two_step_time": 0.8,
    }
    save_checkpoint(path, model, convert(CheckpointInfo, fields | changes, ""))
    return path
