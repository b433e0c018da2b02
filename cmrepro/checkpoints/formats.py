"""Read a checkpoint of any supported format; nothing in it is run.

Ours (safetensors), state dicts of `torch.save`, flax files of the official CIFAR-10 code and
diffusers folders. A tensor of a mapped file takes memory when it is used.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cmrepro.checkpoints import diffusers, flax, io
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.schema import to_builtins

Format = Literal["safetensors", "torch", "flax", "diffusers"]


class Contents(NamedTuple):
    """Format, weights under our names, stated fields of `CheckpointInfo`, and a step counter.

    The fields have the network always, and are all there if we wrote the file.
    """

    format: Format
    weights: dict[str, Tensor]
    fields: dict[str, Any]
    step: int | None


def file_format(path: Path) -> Format:
    """The format of a file or folder, by its first bytes; refuses pickles and unknown formats."""
    if path.is_dir():
        if diffusers.is_diffusers_folder(path):
            return "diffusers"
        raise ValueError(f"{path} is no diffusers folder: it has no [unet/]config.json")
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


def weights_file(path: Path) -> Path:
    """The file itself, or the one with the weights in a diffusers folder."""
    return diffusers.folder_weights_file(path) if path.is_dir() else path


def read_contents(path: Path, network: str | None = None) -> Contents:
    """Weights, stated settings and network of a checkpoint.

    Args:
        path: File or folder.
        network: Name of the network preset, if the file does not state it; by default the one
            with exactly these parameters.

    Raises:
        ValueError: A broken or foreign file, or parameters of another network (names one).
    """
    kind = file_format(path)
    fields: dict[str, Any] = {}
    if kind == "safetensors":
        fields = to_builtins(io.read_info(path))
    elif kind == "diffusers":
        fields = diffusers.folder_fields(path)
    tensors, step = _read_tensors(path, kind)
    network = fields.get("network") or network or _matching_network(path, kind, tensors)
    io.check_parameters(_expected(kind, network), tensors, str(path), network)
    config = PRESETS[network][1]
    if isinstance(config, NCSNppConfig) and kind == "flax":
        tensors = flax.ncsnpp_state_dict(tensors, config)
    elif kind == "diffusers":
        tensors = diffusers.from_diffusers(tensors, network)
    return Contents(kind, dict(tensors), fields | {"network": network}, step)


def _read_tensors(path: Path, kind: Format) -> tuple[Mapping[str, Any], int | None]:
    """Tensors under the names of the file's format, and its step counter."""
    if kind == "flax":
        return flax.read_flax_checkpoint(path)
    file = weights_file(path)
    if kind == "torch" or file.name == diffusers.OLD_WEIGHTS:
        return read_torch_file(file), None
    io.read_safetensors_metadata(file)  # refuses a broken file
    return io.read_weights(file), None


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict written by `torch.save` since version 1.6 (a zip), mapped.

    Raises:
        ValueError: Cut off, of another format, or more than names and tensors. Nothing is run.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        whole = zipfile.is_zipfile(path)
        reason = "damaged, or holds more than tensors" if whole else "cut off, or of torch < 1.6"
        raise ValueError(
            f"{path} is {reason} ({type(error).__name__}); nothing in it was run: download it "
            "again, or save its state dict alone if you trust it"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ValueError(
            f"{path} holds other things than named tensors; save the network's state dict alone"
        )
    return dict(weights)


def _matching_network(path: Path, kind: Format, tensors: Mapping[str, Any]) -> str:
    """The one preset with exactly these parameters; without any, the error names the nearest."""
    got = io.shapes(tensors)
    expected = {name: io.shapes(_expected(kind, name)) for name in PRESETS}
    matching = [name for name, wanted in expected.items() if wanted == got]
    if len(matching) > 1:
        raise ValueError(f"{path} fits {', '.join(matching)}; name one with --network")
    if matching:
        return matching[0]
    nearest = min(expected, key=lambda name: len(expected[name].items() ^ got.items()))
    raise ValueError(
        f"{path} ({kind}) has the parameters of no network of ours; the nearest is '{nearest}', "
        f"but it {io.parameter_differences(expected[nearest], got)}"
    )


def _expected(kind: Format, network_name: str) -> Mapping[str, Tensor]:
    """A network's parameters as a format names them, without memory; none if it has no such."""
    with torch.device("meta"):
        network = build_network(network_name)
    if kind == "flax":
        return flax.flax_layout(network) if isinstance(network, NCSNpp) else {}
    weights = network.state_dict()
    return (
        diffusers.to_diffusers(weights, diffusers.adm_config(network_name))
        if kind == "diffusers"
        else weights
    )
