"""Checkpoints of any supported format: read, and written as ours; nothing in them is run.

Ours and plain safetensors, state dicts of `torch.save`, flax files of the official CIFAR-10 code
and diffusers folders. A tensor of a mapped file takes memory when it is used.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cmrepro import schema
from cmrepro.checkpoints import diffusers, flax, io, registry
from cmrepro.checkpoints.locate import weights_files
from cmrepro.consistency.parameterization import Parameterization
from cmrepro.files import download, first_bytes, sha256
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import CheckpointInfo
from cmrepro.settings import Selection

# Goes into the header; rises with every change that would give other bytes from the same source.
CONVERSION_VERSION = 2

OLD_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # before torch 1.6
Format = Literal["safetensors", "torch", "flax", "diffusers"]


def convert(
    source: str | Path,
    out: str | Path | None = None,  # for a released name by default in the cache
    *,
    network: str | None = None,  # for files that do not state it; by default the one that fits
    parameterization: Parameterization | None = None,  # for files that do not state it
    key: str | None = None,  # of one state dict among several in a file, e.g. "ema"
    dtype: torch.dtype = torch.float32,  # of the stored parameters
    two_step_time: float | None = None,  # by default that of the source
    two_step_selection: Selection | None = None,  # None for a time given by hand
) -> Path:
    """Write a checkpoint of any supported format (`source` as for `load_model`) as one of ours."""
    entry = registry.released(source)
    if out is None:
        if entry is None:
            raise ValueError(f"got no file to write {source} to; give one with --out")
        out = entry.converted
    path = fetch_checkpoint(entry.name) if entry else local_checkpoint(source)
    weights, info = read_checkpoint(path, entry, network, parameterization, key)
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


def fetch_checkpoint(name: str) -> Path:
    """The official file of a released checkpoint, downloaded if it is not in the cache yet."""
    entry = schema.lookup("released checkpoint", name, registry.released_checkpoints())
    read = functools.partial(read_contents, network=entry.network)
    return download(entry.url, entry.downloaded, entry.checksum, read)


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
    key: str | None = None,
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Weights under our names, and their header; arguments as for `convert`."""
    known = released.network if released else network
    kind, weights, fields, step = read_contents(path, known, key)
    io.require_finite(weights, str(path))
    fields |= released.info_fields if released else {}
    for name, value in {"network": network, "parameterization": parameterization}.items():
        if value and fields.setdefault(name, value) != value:
            got = f"{path} has {name} {fields[name]}, got --{name} {value}"
            raise ValueError(f"{got}; leave it out")
    if "parameterization" not in fields:
        raise ValueError(
            f"{path} does not state what it computes; give --parameterization boundary "
            "(consistency function) or edm (EDM denoiser)"
        )
    if "selection" not in fields:  # not written by us
        names = ("name", "url", "licence") if released else ()
        fields["converted"] = {name: getattr(released, name) for name in names} | {
            **{"file": path.name, "sha256": sha256(*weights_files(path)), "key": key},
            **{"format": kind, "conversion": CONVERSION_VERSION, "step": step},
        }
        fields["selection"] = {"rule": "as released" if released else "not stated"}
    fields = registry.default_sigmas() | fields
    return weights, schema.convert(CheckpointInfo, fields, str(path))


def read_contents(
    path: Path, network: str | None = None, key: str | None = None
) -> tuple[Format, dict[str, Tensor], dict[str, Any], int | None]:
    """Format, weights under our names, stated fields of `CheckpointInfo`, step counter of a file.

    The network is always among the fields; `network` and `key` are for files with several or none.
    """
    files, step = weights_files(path), None
    kind = _format(files[0])
    fields: dict[str, Any] = {}
    tensors: Any = {}  # by the format's names, arrays or tensors
    if kind == "flax":
        tensors, step = flax.read_flax_checkpoint(path, key or flax.EMA_TREE)
    else:
        for file in files:
            tensors |= _state_dict(file) if _format(file) == "torch" else io.read_weights(file)
        if path.is_dir() or "time_embedding.linear_1.weight" in tensors:
            kind, tensors = "diffusers", diffusers.renamed(tensors)
            fields = diffusers.folder_fields(path)
        elif kind == "safetensors" and io.is_ours(files[0]):
            fields = schema.to_builtins(io.read_info(files[0]))
    network, tensors = _fitting(path, kind, tensors, fields.get("network") or network, key)
    config = PRESETS[network][1]
    if kind == "flax" and isinstance(config, NCSNppConfig):
        tensors = flax.ncsnpp_state_dict(tensors, config)
    elif kind == "diffusers":
        tensors = diffusers.from_diffusers(tensors, network)
    return kind, dict(tensors), fields | {"network": network}, step


def _format(path: Path) -> Format:
    """The format of a file by its first bytes; refuses pickles and unknown formats."""
    start = first_bytes(path)
    if start.startswith((b"PK\x03\x04", OLD_TORCH)):
        return "torch"
    if start[4:9] == b"\0\0\0\0{":  # the length of the header, below 4 GiB, and its first byte
        return "safetensors"
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:  # PROTO and its version
        raise ValueError(
            f"{path} is a Python pickle, which runs code when it is opened; save its state dict "
            "if you trust it; in place of NVIDIA's EDM models use edm-cifar10 or edm-imagenet64"
        )
    if 0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF):  # a map with entries
        return "flax"
    raise ValueError(
        f"{path} is of no known format; allowed are safetensors, a PyTorch state dict (.pt), a "
        "flax checkpoint (msgpack) and a diffusers folder"
    )


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of `torch.save`, mapped; names in nested dicts are joined by dots."""
    mapped = first_bytes(path).startswith(b"PK")  # not possible in the format before torch 1.6
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        leaves = schema.flat(content if isinstance(content, Mapping) else {})
    except Exception as error:  # in many lines, of which one says what the file holds
        found = re.search(
            r"GLOBAL [\w.]+|(PytorchStreamReader|file in archive) [^\n]{,80}", str(error)
        )
        got = f"cut off or holds more than tensors ({found[0] if found else type(error).__name__})"
        advice = "download it again, or save its state dict alone"
        raise ValueError(f"{path} is {got}; {advice}") from error
    tensors = {name: value for name, value in leaves.items() if torch.is_tensor(value)}
    plain = (t.layout == torch.strided and t.device.type == "cpu" for t in tensors.values())
    if tensors and all(plain):
        return tensors
    got = ", ".join([*map(str, leaves)][:3]) or type(content).__name__
    raise ValueError(f"{path} holds no named tensors but {got}; save the state dict alone")


def _fitting(
    path: Path, kind: Format, tensors: Mapping[str, Any], network: str | None, key: str | None
) -> tuple[str, Mapping[str, Any]]:
    """The requested network, or the one with these parameters, and these without their prefix.

    Refuses any other parameters.
    """
    expected: dict[str, Mapping[str, Tensor]] = {}  # under the format's names, without memory
    possible = diffusers.adm_networks() if kind == "diffusers" else PRESETS
    for name in [network] if network else possible:
        with torch.device("meta"):
            candidate = build_network(name)
        expected[name] = candidate.state_dict()
        if kind == "flax":
            expected[name] = flax.flax_layout(candidate) if isinstance(candidate, NCSNpp) else {}
        elif kind == "diffusers":
            config = schema.lookup("network of diffusers", name, diffusers.adm_networks())
            expected[name] = diffusers.to_diffusers(expected[name], config)
    if kind != "flax":
        tensors = _without_prefix(path, tensors, [next(iter(e)) for e in expected.values()], key)
    got = io.shapes(tensors)
    distances = {name: len(io.shapes(e).items() ^ got.items()) for name, e in expected.items()}
    nearest, *others = sorted(distances, key=lambda name: distances[name])
    if matching := [name for name in others if not distances[name]]:
        raise ValueError(f"{path} fits {', '.join([nearest, *matching])}; name one with --network")
    source = str(path) if network else f"{path} (compared with the nearest network)"
    io.check_parameters(expected[nearest], tensors, source, nearest)
    return nearest, tensors


def _without_prefix(
    path: Path, tensors: Mapping[str, Any], firsts: Sequence[str], key: str | None
) -> Mapping[str, Any]:
    """The only state dict in a file, or the one of `key`: names without "module." and the like.

    A state dict begins where the first parameter of a network is (`firsts`).
    """
    found = {n[: -len(f)] for f in firsts for n in tensors if f".{n}".endswith(f".{f}")}
    matching = {prefix for prefix in found if prefix.startswith(f"{key}.")} if key else found
    if (key and not matching) or (len(matching) > 1 and "" not in matching):
        listed = ", ".join(sorted(prefix.rstrip(".") for prefix in found)) or "none"
        got = f"no weights under the key '{key}'" if key else f"{len(found)} state dicts"
        raise ValueError(f"{path} has {got}; keys found: {listed}; name one with --key")
    prefix = "" if "" in matching or not matching else matching.pop()
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
