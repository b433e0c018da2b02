"""Checkpoints of any supported format: read, and written as ours; nothing in them is run.

Ours (safetensors), state dicts of `torch.save`, flax files of the official CIFAR-10 code and
diffusers folders. A tensor of a mapped file takes memory when it is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cmrepro import schema
from cmrepro.checkpoints import diffusers, flax, io, registry
from cmrepro.consistency.parameterization import Parameterization
from cmrepro.files import sha256
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import CheckpointInfo
from cmrepro.settings import Selection

# Goes into the header; rises with every change that would give other bytes from the same source.
CONVERSION_VERSION = 2

Format = Literal["safetensors", "torch", "flax", "diffusers"]


def convert(
    source: str | Path,
    out: str | Path | None = None,  # for a released name by default in the cache
    *,
    network: str | None = None,  # for files that do not state it; by default the one that fits
    parameterization: Parameterization | None = None,  # for .pt and flax files given by path
    dtype: torch.dtype = torch.float32,  # of the stored parameters
    two_step_time: float | None = None,  # by default that of the source
    two_step_selection: Selection | None = None,  # None for a time given by hand
) -> Path:
    """Write a checkpoint of any supported format (`source` as for `load_model`) as one of ours."""
    entry = None if Path(source).exists() else registry.released_checkpoints().get(str(source))
    if out is None:
        if entry is None:
            raise ValueError(f"got no file to write {source} to; give one with --out")
        out = entry.converted
    path = registry.fetch_checkpoint(entry.name) if entry else local_checkpoint(source)
    weights, info = read_checkpoint(path, entry, network, parameterization)
    if two_step_time is not None:
        low, high = info.sigma_min, info.sigma_max
        if not low < two_step_time < high:
            allowed = f"allowed is between {low:g} and {high:g}"
            raise ValueError(f"got two-step time {two_step_time:g}; {allowed}")
        info = info.replace(two_step_time=two_step_time, two_step_selection=two_step_selection)
    with torch.device("meta"):
        empty = build_network(info.network)
    io.save_checkpoint(out, empty, info, dtype, weights)
    return Path(out)


def local_checkpoint(name: str | Path) -> Path:
    """The path of a bundled checkpoint's name, or the path itself; refuses what is neither."""
    bundled = io.bundled_checkpoints()
    path = Path(name) if Path(name).exists() else bundled.get(str(name))
    if path is None:
        kind, known = "checkpoint (no such file either)", registry.released_checkpoints()
        listed_by = "cmrepro checkpoints list"
        raise ValueError(schema.unknown(kind, str(name), [*bundled, *known], listed_by))
    return path


def read_checkpoint(
    path: Path,
    released: registry.ReleasedCheckpoint | None = None,
    network: str | None = None,
    parameterization: Parameterization | None = None,
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Weights under our names, and their header; arguments as for `convert`."""
    kind, weights, fields, step = read_contents(path, released.network if released else network)
    fields |= released.info_fields if released else {}
    for key, value in {"network": network, "parameterization": parameterization}.items():
        if value and fields.setdefault(key, value) != value:
            raise ValueError(f"{path} has {key} {fields[key]}, got --{key} {value}; leave it out")
    if "parameterization" not in fields:
        raise ValueError(
            f"{path} does not state what it computes; give --parameterization boundary "
            "(consistency function) or edm (EDM denoiser)"
        )
    if "selection" not in fields:  # not written by us
        keys = ("name", "url", "licence") if released else ()
        fields["converted"] = {key: getattr(released, key) for key in keys} | {
            **{"file": path.name, "sha256": sha256(diffusers.weights_file(path))},
            **{"format": kind, "conversion": CONVERSION_VERSION, "step": step},
        }
        fields["selection"] = {"rule": "as released" if released else "not stated"}
    fields = registry.default_sigmas() | fields
    return weights, schema.convert(CheckpointInfo, fields, str(path))


def read_contents(
    path: Path, network: str | None = None
) -> tuple[Format, dict[str, Tensor], dict[str, Any], int | None]:
    """Format, weights under our names, stated fields of `CheckpointInfo`, step counter of a file.

    The network is always among the fields; `network` is for files that do not state it.
    """
    kind, step = _format(path), None
    fields: dict[str, Any] = {}
    tensors: Any  # by the format's names, arrays or tensors
    if kind == "flax":
        tensors, step = flax.read_flax_checkpoint(path)
    else:
        if kind == "safetensors":
            fields = schema.to_builtins(io.read_info(path))
        elif kind == "diffusers":
            fields = diffusers.folder_fields(path)
        file = diffusers.weights_file(path)
        tensors = _state_dict(file) if _format(file) == "torch" else io.read_weights(file)
    network = _fitting_network(path, kind, tensors, fields.get("network") or network)
    config = PRESETS[network][1]
    if kind == "flax" and isinstance(config, NCSNppConfig):
        tensors = flax.ncsnpp_state_dict(tensors, config)
    elif kind == "diffusers":
        tensors = diffusers.from_diffusers(tensors, network)
    return kind, dict(tensors), fields | {"network": network}, step


def _format(path: Path) -> Format:
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


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict written by `torch.save` since version 1.6 (a zip), mapped."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        raise ValueError(
            f"{path} is cut off or holds more than tensors "
            f"({type(error).__name__}); download it again, or save its state dict alone"
        ) from error
    if isinstance(weights, dict) and all(torch.is_tensor(v) for v in weights.values()):
        return weights
    raise ValueError(f"{path} holds other things than named tensors; save the state dict alone")


def _fitting_network(
    path: Path, kind: Format, tensors: Mapping[str, Any], network: str | None
) -> str:
    """The requested network, or the one with these parameters; refuses any other parameters."""
    expected: dict[str, Mapping[str, Tensor]] = {}  # under the format's names, without memory
    for name in [network] if network else PRESETS:
        with torch.device("meta"):
            candidate = build_network(name)
        expected[name] = candidate.state_dict()
        if kind == "flax":
            expected[name] = flax.flax_layout(candidate) if isinstance(candidate, NCSNpp) else {}
        elif kind == "diffusers":
            config = diffusers.adm_networks()[name]
            expected[name] = diffusers.to_diffusers(expected[name], config)
    got = io.shapes(tensors)
    distances = {name: len(io.shapes(e).items() ^ got.items()) for name, e in expected.items()}
    nearest, *others = sorted(distances, key=lambda name: distances[name])
    if matching := [name for name in others if not distances[name]]:
        raise ValueError(f"{path} fits {', '.join([nearest, *matching])}; name one with --network")
    source = str(path) if network else f"{path} (compared with the nearest network)"
    io.check_parameters(expected[nearest], tensors, source, nearest)
    return nearest
