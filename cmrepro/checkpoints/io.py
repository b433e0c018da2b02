"""Read and write the project's checkpoints: safetensors with a `CheckpointInfo` in the header."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrepro.files import atomic_path
from cmrepro.records import CheckpointInfo
from cmrepro.schema import convert, to_builtins

FORMAT = "cmrepro-checkpoint-2"
Shapes = Mapping[str, tuple[int, ...]]


def save_checkpoint(
    path: str | Path, network: nn.Module, info: CheckpointInfo, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of `network`, its parameters in `dtype`, with `info` in the header."""
    write_checkpoint(path, stored_weights(network.state_dict(), network, dtype), info)


def stored_weights(
    weights: Mapping[str, Tensor], network: nn.Module, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Weights as they are stored: parameters in `dtype`, buffers as they are.

    A buffer is a constant, e.g. the frequencies of a noise embedding, which rounding would ruin.

    Args:
        weights: Weights of `network`, by name.
        network: Tells parameters from buffers; may be on the meta device.
        dtype: Type of the parameters.
    """
    buffers = {name for name, _ in network.named_buffers()}
    return {
        name: tensor.detach().to("cpu", tensor.dtype if name in buffers else dtype).contiguous()
        for name, tensor in weights.items()
    }


def write_checkpoint(path: str | Path, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write contiguous weights on the CPU as they are, atomically, with `info` in the header."""
    # One key, since safetensors writes several in random order: equal models give equal files.
    metadata = {FORMAT: json.dumps(to_builtins(info), sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(weights, temporary, metadata)
        except SafetensorError as error:  # safetensors wraps the system's errors
            raise ValueError(
                f"cannot write {path} ({error}); free space or choose another folder"
            ) from error


def bundled_checkpoints() -> dict[str, Path]:
    """Checkpoints that come with the package: name -> file."""
    folder = Path(str(resources.files(__package__) / "bundled"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The text fields in the header of a safetensors file; refuses a truncated or other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def read_info(path: str | Path) -> CheckpointInfo:
    """The header of a checkpoint, without its weights.

    Raises:
        ValueError: Truncated, not safetensors, or not written by this version of cmrepro.
    """
    metadata = read_safetensors_metadata(path)
    if FORMAT not in metadata:
        raise ValueError(
            f"{path} has header '{', '.join(metadata) or 'none'}', allowed is '{FORMAT}'; train "
            "again, or convert the original file with 'cmrepro checkpoints convert'"
        )
    return header(metadata[FORMAT], path)


def header(text: str, path: str | Path) -> CheckpointInfo:
    """The `CheckpointInfo` in the header of a file; refuses any other text."""
    try:
        return convert(CheckpointInfo, msgspec.json.decode(text), "")
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError(
            f"{path} has a broken header ({error}); copy or download it again"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped: they take memory when they are used."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check_parameters(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, network_name: str
) -> None:
    """Refuse weights whose names or shapes are not the expected ones; names the first of them."""
    if problem := parameter_differences(shapes(expected), shapes(weights)):
        raise ValueError(
            f"{source} is not of network '{network_name}': it {problem}; "
            "use a checkpoint of this network"
        )


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def parameter_differences(expected: Shapes, got: Shapes) -> str:
    """The missing, surplus and misshapen parameters in `got`; empty without any."""
    groups = {
        "lacks parameter": sorted(expected.keys() - got.keys()),
        "has a surplus parameter": sorted(got.keys() - expected.keys()),
        "has": sorted(f"{k} {got[k]}, not {v}" for k, v in expected.items() if got.get(k, v) != v),
    }
    return ", it ".join(
        f"{problem} {names[0]}" + f" (and {len(names) - 1} more)" * (len(names) > 1)
        for problem, names in groups.items()
        if names
    )
