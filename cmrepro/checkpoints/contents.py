"""What a checkpoint file holds, in any format that can be read, without loading its weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgpack
import torch
from safetensors import safe_open
from torch import Tensor

from cmrepro.checkpoints import flax
from cmrepro.checkpoints.diffusers_folder import (
    WEIGHTS,
    folder_network,
    folder_weights,
    is_diffusers_folder,
    read_folder_fields,
    read_unet_config,
    weights_file,
)
from cmrepro.checkpoints.io import (
    FORMAT,
    bundled_checkpoints,
    parameter_differences,
    read_info,
    read_safetensors_metadata,
    unknown_checkpoint,
)
from cmrepro.checkpoints.pickles import pickle_contents
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.checkpoints.torch_files import PICKLE_ADVICE, read_torch_file
from cmrepro.networks.ncsnpp import NCSNpp
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.schema import to_builtins

Format = Literal["safetensors", "torch", "flax", "diffusers", "pickle"]
TypedShapes = dict[str, tuple[str, tuple[int, ...]]]


def file_format(path: Path) -> Format:
    """The format of a file or folder, by its first bytes.

    Raises:
        ValueError: None that is known.
    """
    if path.is_dir():
        if is_diffusers_folder(path):
            return "diffusers"
        raise ValueError(
            f"{path} is no diffusers folder (no unet/config.json or config.json); allowed are "
            "those of UNet2DModel and ConsistencyModelPipeline"
        )
    with open(path, "rb") as file:
        start = file.read(10)
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start[4:9] == b"\0\0\0\0{":  # the length of the header, below 4 GiB, and its first byte
        return "safetensors"
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:  # PROTO and its version
        return "pickle"
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # a map with entries
        return "flax"
    raise ValueError(
        f"{path} is of no known format; allowed are safetensors, a PyTorch state dict (.pt), a "
        "flax checkpoint (msgpack) and a diffusers folder"
    )


def here(name: str) -> Path:
    """The file or folder on this machine that a path, bundled or released name stands for.

    Of a released checkpoint the official file, or the converted one where only that is there.

    Raises:
        ValueError: Unknown, or not downloaded yet (says the command that does it).
    """
    path = Path(name)
    if path.exists():
        return path
    if name in (bundled := bundled_checkpoints()):
        return bundled[name]
    if name not in (released := released_checkpoints()):
        raise ValueError(unknown_checkpoint(name))
    for path in (released[name].downloaded, released[name].converted):
        if path.is_file():
            return path
    raise ValueError(
        f"released checkpoint '{name}' is not here yet (no file {released[name].downloaded}); run "
        f"'cmrepro checkpoints fetch {name}'"
    )


def checkpoint_rows() -> list[dict[str, Any]]:
    """One row a bundled or released checkpoint: what it is and whether it is here."""
    rows = []
    for name, path in bundled_checkpoints().items():
        info = read_info(path)
        assert info.training  # our own trainings
        rows.append(
            {
                "name": name,
                "state": "bundled",
                "method": info.training.method,
                "distance": info.training.distance,
                "data": info.training.dataset,
                "network": info.network,
                "images seen": info.training.images_seen,
                "second time": info.two_step_time,
                "bytes": path.stat().st_size,
            }
        )
    for name, entry in released_checkpoints().items():
        states = {"converted": entry.converted, "downloaded": entry.downloaded}
        rows.append(
            {
                "name": name,
                "state": next((s for s, path in states.items() if path.is_file()), "not here"),
                "method": entry.method,
                "distance": entry.distance,
                "data": entry.dataset,
                "network": entry.network,
                "images seen": entry.images_seen,
                "second time": entry.two_step_time,
                "bytes": entry.bytes_approx,
            }
        )
    return rows


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Returns:
        format, bytes, network (None where none of ours fits), num_parameters, tensors (name ->
        type and shape); before them what the file says of itself, if we wrote it; of a flax file
        its trees and step, the tensors being those of the EMA weights; of a diffusers folder the
        structure it describes, and what differs from our networks where none fits. Of a pickle,
        which is not opened, what its instructions name in the place of tensors.

    Raises:
        ValueError: Unknown format, or a broken file.
    """
    kind = file_format(path)
    said: dict[str, Any] = {}
    file = weights_file(path) if kind == "diffusers" else path
    if kind == "pickle":
        return {
            "network": None,
            "format": kind,
            "bytes": file.stat().st_size,
            **pickle_contents(path),
            "not opened": PICKLE_ADVICE,
        }
    if kind == "safetensors":
        if read_safetensors_metadata(path).get("format") == FORMAT:
            said = to_builtins(read_info(path))
        shapes = _safetensors_shapes(path)
    elif kind == "diffusers":
        said = read_folder_fields(path) | _structure(path)
        shapes = (
            _safetensors_shapes(file)
            if file.name == WEIGHTS
            else tensor_shapes(folder_weights(path))
        )
    elif kind == "torch":
        shapes = tensor_shapes(read_torch_file(path))
    else:
        said, shapes = _flax_contents(path)
    return {
        **said,
        "network": said["network"] if "network" in said else guess_network(kind, shapes),
        "format": kind,
        "bytes": file.stat().st_size,
        "num_parameters": sum(math.prod(shape) for _, shape in shapes.values()),
        "tensors": {name: f"{dtype} {list(shape)}" for name, (dtype, shape) in shapes.items()},
    }


def _structure(path: Path) -> dict[str, Any]:
    """What the config.json of a diffusers folder describes, and which network of ours it is."""
    config = read_unet_config(path)
    said: dict[str, Any] = {
        "structure": {key: value for key, value in config.items() if key != "_diffusers_version"}
    }
    try:
        return said | {"network": folder_network(path)}
    except ValueError as error:
        return said | {"network": None, "differs": str(error)}


def guess_network(kind: Format, shapes: TypedShapes) -> str | None:
    """The preset with exactly these parameters, None where there is none.

    Args:
        kind: Format of the file, which decides whose names they are.
        shapes: Name -> type and shape.
    """
    got = {name: shape for name, (_, shape) in shapes.items()}
    return next((name for name in PRESETS if expected_shapes(kind, name) == got), None)


def nearest_network(kind: Format, shapes: TypedShapes) -> str:
    """Which preset comes nearest to parameters that are of none, and what differs from it."""
    got = {name: shape for name, (_, shape) in shapes.items()}
    all_expected = {name: expected_shapes(kind, name) for name in PRESETS}
    nearest, expected = max(
        ((name, expected) for name, expected in all_expected.items() if expected),
        key=lambda pair: len(pair[1].keys() & got.keys()) + len(pair[1].items() & got.items()),
    )
    return f"the nearest is '{nearest}', but it {parameter_differences(expected, got)}"


def expected_shapes(kind: Format, network_name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters in a format; none where it has no such network.

    Args:
        kind: Format, which decides whose names and order of axes they are.
        network_name: Of a preset.
    """
    with torch.device("meta"):
        network = build_network(network_name)
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if kind != "flax":
        return ours
    if not isinstance(network, NCSNpp):
        return {}
    return {
        official: tuple(shape[flax.AXES[len(shape)].index(i)] for i in range(len(shape)))
        for official, shape in ((o, ours[name]) for name, o in flax.flax_names(network).items())
    }


def tensor_shapes(weights: Mapping[str, Tensor]) -> TypedShapes:
    """Name -> type and shape."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in weights.items()
    }


def _safetensors_shapes(path: Path) -> TypedShapes:
    types = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {
            key: (types.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()))
            for key, part in slices.items()
        }


def _flax_contents(path: Path) -> tuple[dict[str, Any], TypedShapes]:
    """Trees and step of a flax file, and the shapes of its EMA weights.

    Of each array only type and shape are kept.
    """

    def shape_only(code: int, data: bytes) -> Any:
        if code not in (flax.NDARRAY, flax.SCALAR):
            return None
        shape, dtype, _ = msgpack.unpackb(data)
        return str(dtype), tuple(map(int, shape))

    trees = flax.read_training_state(path, shape_only)
    leaves = {name: dict(_leaves(tree)) for name, tree in trees.items()}
    said = {
        "trees": {
            name: f"{len(arrays)} arrays, {sum(math.prod(s) for _, s in arrays.values())} numbers"
            for name, arrays in leaves.items()
            if isinstance(trees[name], dict)
        },
        "values": {name: v for name, v in trees.items() if isinstance(v, int | float | str)},
    }
    return said, leaves.get(flax.EMA_TREE, {})


def _leaves(tree: Any, path: str = "") -> Any:
    if isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _leaves(branch, f"{path}/{name}" if path else str(name))
    elif isinstance(tree, tuple):
        yield path, tree
