"""The official CIFAR-10 checkpoints: flax's msgpack files, read without jax or flax.

A file is one msgpack map of the training state. Its trees are `params` (the weights that are
trained), `params_ema` (their average at `ema_rate`, which the official code samples from and which
is read here), in CT and progressive distillation `target_params`, and the optimizer's moments.
Arrays are msgpack extensions, as flax/serialization.py of flax 0.6 writes them. Nothing in such a
file can be executed.
"""

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import nn

from cmrepro.networks.ncsnpp import Attention, NCSNpp, NCSNppConfig, PyramidDownsample, ResBlock

EMA_TREE = "params_ema"
NDARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax's msgpack extension codes
CHUNKED = "__msgpack_chunked_array__"  # marks a map that holds an array of more than 1 GiB
MAX_ENTRIES = 2**16  # of one map; the released networks have 56 modules

# Our modules -> the official ones, outside and inside of the blocks. Blocks are numbered by kind.
MODULES = {
    "fourier": "GaussianFourierProjection_0",
    "time_embed.0": "Dense_0",
    "time_embed.2": "Dense_1",
    "conv_in": "Conv_0",
    "norm_out": "GroupNorm_0",
    "conv_out": "Conv_1",
}
BLOCKS: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    ResBlock: (
        "ResnetBlockBigGANpp",
        {
            "norm1": "GroupNorm_0",
            "conv1": "Conv_0",
            "emb": "Dense_0",
            "norm2": "GroupNorm_1",
            "conv2": "Conv_1",
            "skip": "Conv_2",
        },
    ),
    Attention: (
        "AttnBlockpp",
        {
            "norm": "GroupNorm_0",
            "query": "NIN_0",
            "key": "NIN_1",
            "value": "NIN_2",
            "out": "NIN_3",
        },
    ),
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


@dataclass(frozen=True)
class FlaxCheckpoint:
    """What is read from one official file.

    Attributes:
        parameters: The EMA weights, the flax tree's path joined by "/" -> read-only array.
        step: Training steps.
    """

    parameters: dict[str, np.ndarray]
    step: int


def read_flax_checkpoint(path: str | Path) -> FlaxCheckpoint:
    """The EMA weights of an official checkpoint.

    Memory holds the result and one array more.

    Args:
        path: For example `checkpoint_80` or `edm_cifar10_ema`.

    Raises:
        ValueError: The file is cut off, or not a flax training state with `params_ema`.
    """
    path = Path(path)
    content = read_training_state(path, _decode, {EMA_TREE, "step"})
    with _official(path, content):
        if not {EMA_TREE, "step"} <= content.keys():
            raise ValueError(f"it has no {EMA_TREE} and step but {_some(content)}")
        return FlaxCheckpoint(dict(_flatten(content[EMA_TREE])), int(content["step"]))


def read_training_state(
    path: Path, decode: Callable[[int, bytes], Any], wanted: Container[str] | None = None
) -> dict[str, Any]:
    """What an official file holds, by name in its order, read once from front to back.

    Args:
        path: The file.
        decode: What becomes of a msgpack extension of a code.
        wanted: What is read; the rest is passed over and None. Everything by default.

    Raises:
        ValueError: The file is cut off, or no flax training state.
    """
    size = path.stat().st_size
    content: dict[str, Any] = {}
    with path.open("rb") as file, _official(path, content):
        unpacker = msgpack.Unpacker(
            file,
            ext_hook=decode,
            max_buffer_size=max(size, 1),
            max_map_len=MAX_ENTRIES,
            max_array_len=MAX_ENTRIES,
        )
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            if not isinstance(name, str):
                raise ValueError(f"it has a {type(name).__name__} in place of a tree's name")
            if wanted is None or name in wanted:
                content[name] = unpacker.unpack()
            else:
                unpacker.skip()
                content[name] = None
        if size != unpacker.tell():
            raise ValueError(f"{size - unpacker.tell()} bytes follow its end")
    return content


@contextlib.contextmanager
def _official(path: Path, content: Iterable[str]) -> Iterator[None]:
    """One line for all that can be wrong in a file of which `content` has been read."""
    try:
        yield
    except msgpack.OutOfData as error:
        raise ValueError(
            f"{path} is cut off: its {path.stat().st_size} bytes end within the tree after "
            f"{_some(list(content)[-1:])}; copy or download it again"
        ) from error
    # The decoder reports what is malformed by any of these.
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(
            f"{path} is not a flax checkpoint of the official CIFAR-10 code "
            f"({error or type(error).__name__}); use one of its files, e.g. checkpoint_80"
        ) from error


def _decode(code: int, data: bytes) -> Any:
    """What one of flax's msgpack extensions holds."""
    if code == COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (NDARRAY, SCALAR):
        raise ValueError(f"it has a msgpack extension of type {code}")
    shape, name, buffer = msgpack.unpackb(data)
    dtype = np.dtype(name)
    if dtype.kind not in "biufc":
        raise ValueError(f"it has an array of type {name}")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    return array[()] if code == SCALAR else array


def _flatten(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of nested maps with their paths; those in chunks are put together."""
    if isinstance(tree, dict) and CHUNKED in tree:
        yield path, _joined(tree, path)
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _flatten(branch, f"{path}/{name}" if path else str(name))
    elif isinstance(tree, np.ndarray):
        yield path, tree
    else:
        raise ValueError(f"{path or EMA_TREE} is a {type(tree).__name__}, not an array")


def _joined(tree: dict[str, Any], path: str) -> np.ndarray:
    """An array in chunks; its shape and its chunks are maps numbered from "0"."""
    try:
        shape, chunks = (
            [tree[key][str(i)] for i in range(len(tree[key]))] for key in ("shape", "chunks")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is an array in chunks of which some are missing") from error
    return np.concatenate(chunks).reshape(shape)


def flax_names(network: NCSNpp) -> dict[str, str]:
    """The name map: our names of all parameters -> the official ones, in our order."""
    modules = dict(MODULES)
    counts = dict.fromkeys(BLOCKS, 0)
    for name, module in network.named_modules():
        if type(module) in BLOCKS:
            kind, parts = BLOCKS[type(module)]
            number = counts[type(module)]
            counts[type(module)] += 1
            modules |= {f"{name}.{ours}": f"{kind}_{number}/{p}" for ours, p in parts.items()}
    names = {}
    for key in network.state_dict():
        ours, _, leaf = key.rpartition(".")
        kind = modules[ours].rpartition("/")[2].rpartition("_")[0]
        names[key] = f"{modules[ours]}/{LEAVES[kind][leaf]}"
    return names


def ncsnpp_state_dict(
    parameters: dict[str, np.ndarray], config: NCSNppConfig, source: str = "the file"
) -> dict[str, torch.Tensor]:
    """Official parameters as the state dict of `NCSNpp(config)`.

    Args:
        parameters: `FlaxCheckpoint.parameters`. Kernels are (height, width, in, out) or (in, out).
        config: The network they are of.
        source: Where they are from, for errors.

    Returns:
        Name -> float32 tensor of its own memory, in torch's order of axes.

    Raises:
        ValueError: Names the parameters that are missing, surplus, or of another shape or type.
    """
    with torch.device("meta"):
        network = NCSNpp(config)
    names = flax_names(network)
    problems = []
    if missing := [name for name in names.values() if name not in parameters]:
        problems.append(f"lack {_some(missing)}")
    if surplus := sorted(parameters.keys() - names.values()):
        problems.append(f"have the surplus {_some(surplus)}")
    weights, misfits = {}, []
    for ours, expected in network.state_dict().items():
        if (array := parameters.get(names[ours])) is None:
            continue
        axes = AXES.get(array.ndim, range(array.ndim))
        array = array.transpose(axes)
        if array.shape != expected.shape or array.dtype != np.float32:
            misfits.append(
                f"{names[ours]} as {array.dtype} {array.shape}, not float32 "
                f"{tuple(expected.shape)} (in torch's order)"
            )
        elif not problems:
            weights[ours] = torch.from_numpy(np.array(array, order="C"))
    if misfits:
        problems.append(f"have {_some(misfits, shown=1)}")
    if problems:
        raise ValueError(
            f"the parameters of {source} are not of {config}: they {', they '.join(problems)}; "
            "use a checkpoint of this network"
        )
    return weights


def _some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of many names."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + rest
