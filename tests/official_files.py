"""Small networks, and files of them in the formats of the released checkpoints."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import golden
import msgpack
import numpy as np
import pytest
import torch
from random_weights import randomise
from torch import Tensor

from cmrepro.checkpoints.flax import AXES, flax_names
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network

TINY = ADMConfig(32, (1,), 1, (), 32)
NETWORKS: dict[str, tuple[type[UNet | NCSNpp], Any]] = {
    "tiny": (UNet, TINY),
    "deep": (UNet, dataclasses.replace(TINY, num_res_blocks=2)),
    "cond": (UNet, golden.ADM["cond"]),
    "uncond": (UNet, golden.ADM["uncond"]),
    "tiny-flax": (NCSNpp, NCSNppConfig(32, (1, 1), 1)),
}


def use_small_networks(monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path) -> None:
    """These presets and the demo's alone, so that guessing builds no large ones; a cache."""
    for name in [*PRESETS]:
        if name != "patch-unet":
            monkeypatch.delitem(PRESETS, name)
    for name, network in NETWORKS.items():
        monkeypatch.setitem(PRESETS, name, network)
        monkeypatch.setitem(IMAGE_SIZES, name, 8)
    monkeypatch.setenv("CMREPRO_CACHE", str(cache))


def weights_of(name: str) -> dict[str, Tensor]:
    """The same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(randomise(build_network(name)).state_dict())


def write_torch(path: pathlib.Path, name: str = "tiny") -> pathlib.Path:
    """A state dict as the official .pt files are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights_of(name), path)
    return path


def packed(value: Any) -> msgpack.ExtType:
    """Flax's form of an array or numpy number: a msgpack extension of shape, type and bytes."""
    content = (value.shape, value.dtype.name, value.tobytes("C"))
    code = 1 if isinstance(value, np.ndarray) else 3
    return msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True))


def ema_tree(weights: Mapping[str, Tensor], network: NCSNpp) -> dict[str, Any]:
    """Weights of an NCSN++ under the official names, in the official order of axes."""
    tree: dict[str, Any] = {}
    official = flax_names(network)
    for name, tensor in weights.items():
        *modules, leaf = official[name].split("/")
        branch = tree
        for module in modules:
            branch = branch.setdefault(module, {})
        branch[leaf] = tensor.numpy().transpose(np.argsort(AXES[tensor.ndim]))
    return tree


def flax_file(dtype: torch.dtype = torch.float32, name: str = "tiny-flax", **state: Any) -> bytes:
    """The weights of a network in a type, as the EMA, with other parts of a training state."""

    def bfloat16(value: np.ndarray) -> msgpack.ExtType:
        content = (value.shape, "bfloat16", (value.view("<u4") >> 16).astype("<u2").tobytes())
        return msgpack.ExtType(1, msgpack.packb(content))

    network = build_network(name)
    assert isinstance(network, NCSNpp)
    stored = torch.float16 if dtype == torch.float16 else torch.float32
    weights = {n: x.to(dtype).to(stored).contiguous() for n, x in weights_of(name).items()}
    zeros = ema_tree({n: 0 * x for n, x in weights.items()}, network)
    trees = {"params": zeros, "target_params": zeros, "params_ema": ema_tree(weights, network)}
    content = trees | {"opt_state": {"mu": zeros, "nu": zeros}, "lr": 4e-4} | state
    return msgpack.packb(content, default=bfloat16 if dtype == torch.bfloat16 else packed)


def write_flax(path: pathlib.Path, name: str = "tiny-flax", **state: Any) -> pathlib.Path:
    """`flax_file` at step 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax_file(name=name, **{"step": 7} | state))
    return path


def official_step(entry: ReleasedCheckpoint) -> int | None:
    """Step counter in an official flax file: the loop saves number N after step 10,000 N + 1."""
    number = re.search(r"checkpoint_(\d+)$", entry.url)
    return int(number[1]) * 10_000 + 1 if number else None


def write_official(entry: ReleasedCheckpoint, path: pathlib.Path) -> None:
    """A file of random weights of the released checkpoint's network, in its format."""
    if entry.format == "flax":
        write_flax(path, entry.network, step=official_step(entry))
    else:
        write_torch(path, entry.network)


def release(
    monkeypatch: pytest.MonkeyPatch, name: str = "imagenet64-cd-lpips"
) -> ReleasedCheckpoint:
    """A released checkpoint as if it had a small network, its file put into the cache by hand."""
    entry = released_checkpoints()[name]
    small = "tiny-flax" if entry.format == "flax" else "tiny"
    entry = entry.replace(network=small)
    monkeypatch.setitem(released_checkpoints(), name, entry)
    write_official(entry, entry.downloaded)
    return entry
