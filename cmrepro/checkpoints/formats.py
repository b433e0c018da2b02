"""Read a checkpoint of any supported format; nothing in it is run.

Ours (safetensors), state dicts of `torch.save`, flax files of the official CIFAR-10 code and
diffusers folders. A tensor of a mapped file takes memory when it is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cmrepro.checkpoints import diffusers, flax, io
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.schema import to_builtins

Format = Literal["safetensors", "torch", "flax", "diffusers"]


def file_format(path: Path) -> Format:
    """The format of a file or folder, by its first bytes; refuses pickles and unknown formats."""
    if path.is_dir():
        return "diffusers"
    with open(path, "rb") as file:
        start = file.read(10)
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start[4:9] == b"\0\0\0\0{":  # the length of the header, below 4 GiB, and its first byte
        return "safetensors"
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:  # PROTO and its version
        raise ValueError(
            f"{path} is a Python pickle, which runs code when it is opened; save its state dict "
            "if you trust it; in place of NVIDIA's EDM models use edm-cifar10 or edm-imagenet64"
        )
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # a map with entries
        return "flax"
    raise ValueError(
        f"{path} is of no known format; allowed are safetensors, a PyTorch state dict (.pt), a "
        "flax checkpoint (msgpack) and a diffusers folder"
    )


def read_contents(
    path: Path, network: str | None = None
) -> tuple[Format, dict[str, Tensor], dict[str, Any], int | None]:
    """Format, weights under our names, stated fields of `CheckpointInfo`, step counter of a file.

    The network is always among the fields; `network` is for files that do not state it.
    """
    kind = file_format(path)
    fields: dict[str, Any] = {}
    if kind == "safetensors":
        fields = to_builtins(io.read_info(path))
    elif kind == "diffusers":
        fields = diffusers.folder_fields(path)
    tensors, step = _read_tensors(path, kind)
    network = _fitting_network(path, kind, tensors, fields.get("network") or network)
    config = PRESETS[network][1]
    if kind == "flax" and isinstance(config, NCSNppConfig):
        tensors = flax.ncsnpp_state_dict(tensors, config)
    elif kind == "diffusers":
        tensors = diffusers.from_diffusers(tensors, network)
    return kind, dict(tensors), fields | {"network": network}, step


def _read_tensors(path: Path, kind: Format) -> tuple[Mapping[str, Any], int | None]:
    """Tensors under the names of the file's format, and its step counter."""
    if kind == "flax":
        return flax.read_flax_checkpoint(path)
    file = diffusers.weights_file(path)
    pickled = file_format(file) == "torch"
    return read_torch_file(file) if pickled else io.read_weights(file), None


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict written by `torch.save` since version 1.6 (a zip), mapped."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        raise ValueError(
            f"{path} is cut off or holds more than tensors "
            f"({type(error).__name__}); download it again, or save its state dict alone"
        ) from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise ValueError(
            f"{path} holds other things than named tensors; save the state dict alone"
        )
    return weights


def _fitting_network(
    path: Path, kind: Format, tensors: Mapping[str, Any], network: str | None
) -> str:
    """The requested network, or the one with these parameters; refuses any other parameters."""
    expected = {name: _expected(kind, name) for name in ([network] if network else PRESETS)}
    got = io.shapes(tensors)
    distances = {name: len(io.shapes(e).items() ^ got.items()) for name, e in expected.items()}
    nearest = min(distances, key=lambda name: distances[name])
    if list(distances.values()).count(0) > 1:
        matching = ", ".join(name for name, distance in distances.items() if not distance)
        raise ValueError(f"{path} fits {matching}; name one with --network")
    source = str(path) if network else f"{path} (compared with the nearest network)"
    io.check_parameters(expected[nearest], tensors, source, nearest)
    return nearest


def _expected(kind: Format, network_name: str) -> Mapping[str, Tensor]:
    """A network's parameters as a format names them, without memory; none if it has no such."""
    with torch.device("meta"):
        network = build_network(network_name)
    if kind == "flax":
        return flax.flax_layout(network) if isinstance(network, NCSNpp) else {}
    if kind == "diffusers":
        config = diffusers.adm_networks()[network_name]
        return diffusers.to_diffusers(network.state_dict(), config)
    return network.state_dict()
