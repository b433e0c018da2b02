"""Read and write the project's checkpoints: safetensors with a `CheckpointInfo` in the header."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrepro.files import atomic_path, one_line_errors
from cmrepro.records import CheckpointInfo
from cmrepro.schema import convert, to_builtins

FORMAT = "cmrepro-checkpoint-2"


def save_checkpoint(
    path: str | Path,
    network: nn.Module,
    info: CheckpointInfo,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `weights` (by default those of `network`) atomically, with `info` in the header.

    Parameters are stored in `dtype`; buffers, e.g. the frequencies of a noise embedding, are
    constants that rounding would ruin. A `network` with weights may be on the meta device.
    """
    buffers = {name for name, _ in network.named_buffers()}
    stored = {
        name: tensor.detach().to("cpu", tensor.dtype if name in buffers else dtype).contiguous()
        for name, tensor in (weights or network.state_dict()).items()
    }
    require_finite(stored, f"{path} in {dtype}")
    # One key, since safetensors writes several in random order: equal models give equal files.
    metadata = {FORMAT: json.dumps(to_builtins(info), sort_keys=True)}
    # safetensors raises an error of its own for the system's, e.g. a full disk.
    with atomic_path(path) as temporary, one_line_errors(path, "cannot be written"):
        save_file(stored, temporary, metadata)


def bundled_checkpoints() -> dict[str, Path]:
    """Checkpoints that come with the package: name -> file."""
    folder = Path(str(resources.files(__package__) / "bundled"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _opened(path: Path) -> Any:
    """A safetensors file; refuses a truncated or other file."""
    with one_line_errors(path, "is not a valid safetensors file", "copy or download it again"):
        return safe_open(path, framework="pt")


def is_ours(path: Path) -> bool:
    """True for a safetensors file of this project, of any version of its format."""
    with _opened(path) as file:
        return any(key.startswith("cmrepro-checkpoint") for key in file.metadata() or {})


def read_info(path: Path) -> CheckpointInfo:
    """The header of a checkpoint, without its weights; refuses any other file."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise ValueError(
            f"{path} has header '{', '.join(metadata)[:80] or 'none'}', allowed is '{FORMAT}'; "
            "train again, or convert the original file with 'cmrepro checkpoints convert'"
        )
    with one_line_errors(path, "has a damaged header", "copy it again"):
        fields = msgspec.json.decode(metadata[FORMAT])
    return convert(CheckpointInfo, fields, str(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped: they take memory when they are used."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not finite floating-point numbers; names the first."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            got = f"{source} has {name} in {tensor.dtype}"
            raise ValueError(f"{got}, allowed are floating-point weights; save them as such")
        if not tensor.float().isfinite().all():
            advice = "use another checkpoint, or a --dtype of a larger range"
            raise ValueError(f"{source} has NaN or infinity in {name}; {advice}")


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_parameters(
    expected: Mapping[str, Tensor], weights: Mapping[str, Any], source: str, network_name: str
) -> None:
    """Refuse weights whose names or shapes are not the expected ones; names the first of them."""
    want, got = shapes(expected), shapes(weights)
    if differing := sorted(
        (name in got, name in want, name)
        for name in want.keys() | got.keys()
        if want.get(name) != got.get(name)
    ):
        is_stored, is_wanted, name = differing[0]
        fault = f"has {name} {got.get(name)}, not {want.get(name)}"
        if not (is_stored and is_wanted):
            fault = f"{'has a surplus' if is_stored else 'lacks'} parameter {name}"
        others = f" and {len(differing) - 1} more differences" * (len(differing) > 1)
        got_text = f"{source} is not of network '{network_name}': it {fault}{others}"
        raise ValueError(f"{got_text}; use a checkpoint of this network")
