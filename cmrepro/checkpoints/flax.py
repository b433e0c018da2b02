"""The official CIFAR-10 checkpoints: flax's msgpack files, read without jax or flax.

A file is one msgpack map of the training state. Its tree `params_ema`, the average that the
official code samples from, is read. Arrays are msgpack extensions, as flax/serialization.py of
flax 0.6 writes them; none holds code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrepro.files import one_line_errors
from cmrepro.networks.ncsnpp import Attention, NCSNpp, NCSNppConfig, PyramidDownsample, ResBlock
from cmrepro.schema import flat

EMA_TREE = "params_ema"

# Our modules -> the official ones, outside and inside of the blocks. Blocks are numbered by kind.
MODULES = {
    "fourier": "GaussianFourierProjection_0",
    **{"time_embed.0": "Dense_0", "time_embed.2": "Dense_1"},
    **{"conv_in": "Conv_0", "norm_out": "GroupNorm_0", "conv_out": "Conv_1"},
}
RESNET = {
    **{"norm1": "GroupNorm_0", "conv1": "Conv_0", "emb": "Dense_0"},
    **{"norm2": "GroupNorm_1", "conv2": "Conv_1", "skip": "Conv_2"},
}
ATTENTION = {part: f"NIN_{i}" for i, part in enumerate(("query", "key", "value", "out"))}
BLOCKS: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    ResBlock: ("ResnetBlockBigGANpp", RESNET),
    Attention: ("AttnBlockpp", {"norm": "GroupNorm_0"} | ATTENTION),
    PyramidDownsample: ("Downsample", {"conv": "Conv2d_0"}),
}
# Official kind of a module -> our names of its parameters -> the official ones.
LEAVES = {
    "GaussianFourierProjection": {"frequencies": "W"},
    "GroupNorm": {"weight": "scale", "bias": "bias"},
    "Dense": {"weight": "kernel", "bias": "bias"},
    "Conv": {"weight": "kernel", "bias": "bias"},
    "Conv2d": {"weight": "weight", "bias": "bias"},
    "NIN": {"weight": "W", "bias": "b"},
}
# Official axes -> torch's, by the number of axes.
AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def read_flax_checkpoint(
    path: Path, key: str = EMA_TREE
) -> tuple[dict[str, NDArray[Any]], int | None]:
    """The weights in the tree `key`, by the flax tree's path joined by "/", and steps if stated.

    The file is read once from front to back. Memory holds the weights (read-only) and one more
    array: the other trees are skipped.
    """
    size = path.stat().st_size
    content: dict[str, Any] = {}
    fault = "is cut off or not a flax checkpoint of the official CIFAR-10 code"
    with one_line_errors(path, fault, "download it again"), path.open("rb") as file:
        # This bounds what a length in a crafted file can allocate.
        unpacker = msgpack.Unpacker(file, ext_hook=_decode, max_buffer_size=max(size, 2**16))
        for _ in range(unpacker.read_map_header()):
            if (name := unpacker.unpack()) in (key, "step"):
                content[name] = unpacker.unpack()
            else:
                content[name] = unpacker.skip()
        tree, step = content.get(key), content.get("step")
        leaves = flat({key: tree}) if tree else {}
        steps = None if step is None else int(step)
    if not leaves:
        found = ", ".join(map(str, content))
        raise ValueError(f"{path} has no weights under {key}; name one of {found[:99]} with --key")
    weights = {}
    for name, array in leaves.items():
        if getattr(array, "dtype", None) not in (np.float16, np.float32, np.float64):
            got = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{path}: {name} is {got}, allowed are floats")
        weights[name.removeprefix(f"{key}.").replace(".", "/")] = array
    return weights, steps


def _decode(code: int, data: bytes) -> Any:
    """The array or number in one of flax's msgpack extensions, whose codes are 1 and 3."""
    if code not in (1, 3):
        raise ValueError(f"it has a msgpack extension of type {code}")
    shape, name, buffer = msgpack.unpackb(data)
    if name == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(buffer, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(buffer, name).reshape(shape)


def flax_names(network: NCSNpp) -> dict[str, str]:
    """The name map: our names of all parameters -> the official ones, in our order."""
    modules = dict(MODULES)
    for block, (kind, parts) in BLOCKS.items():
        blocks = (name for name, module in network.named_modules() if type(module) is block)
        for i, name in enumerate(blocks):
            modules |= {f"{name}.{ours}": f"{kind}_{i}/{part}" for ours, part in parts.items()}
    names = {}
    for key in network.state_dict():
        ours, _, leaf = key.rpartition(".")
        kind = modules[ours].rpartition("/")[2].rpartition("_")[0]
        names[key] = f"{modules[ours]}/{LEAVES[kind][leaf]}"
    return names


def flax_layout(network: NCSNpp) -> dict[str, Tensor]:
    """A network's parameters under their official names, with the official order of axes."""
    names = flax_names(network)
    return {
        names[ours]: tensor.permute(tuple(np.argsort(AXES[tensor.ndim])))
        for ours, tensor in network.state_dict().items()
    }


def ncsnpp_state_dict(
    parameters: Mapping[str, NDArray[Any]], config: NCSNppConfig
) -> dict[str, Tensor]:
    """Official parameters of this network, all of them, as the state dict of `NCSNpp(config)`.

    Official kernels are (height, width, in, out) or (in, out). The result has its own memory.
    """
    with torch.device("meta"):
        arrays = {ours: parameters[name] for ours, name in flax_names(NCSNpp(config)).items()}
    return {
        ours: torch.from_numpy(np.array(array.transpose(AXES[array.ndim]), order="C"))
        for ours, array in arrays.items()
    }
