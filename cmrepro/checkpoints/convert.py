"""From a checkpoint of any supported format to ours."""

from pathlib import Path

import torch
from torch import Tensor

from cmrepro.checkpoints.diffusers import weights_file
from cmrepro.checkpoints.formats import read_contents
from cmrepro.checkpoints.io import bundled_checkpoints, save_checkpoint
from cmrepro.checkpoints.registry import (
    ReleasedCheckpoint,
    default_sigmas,
    fetch_checkpoint,
    released_checkpoints,
)
from cmrepro.consistency.parameterization import Parameterization
from cmrepro.files import sha256
from cmrepro.networks.presets import build_network
from cmrepro.records import CheckpointInfo
from cmrepro.schema import convert as to_struct
from cmrepro.schema import unknown
from cmrepro.settings import Selection

# Goes into the header; rises with every change that would give other bytes from the same source.
CONVERSION_VERSION = 2


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
    entry = None if Path(source).exists() else released_checkpoints().get(str(source))
    if out is None:
        if entry is None:
            raise ValueError(f"got no file to write {source} to; give one with --out")
        out = entry.converted
    path = fetch_checkpoint(entry.name) if entry else local_checkpoint(source)
    weights, info = read_checkpoint(path, entry, network, parameterization)
    if two_step_time is not None:
        low, high = info.sigma_min, info.sigma_max
        if not low < two_step_time < high:
            raise ValueError(
                f"got two-step time {two_step_time:g}; allowed is between {low:g} and {high:g}"
            )
        info = info.replace(two_step_time=two_step_time, two_step_selection=two_step_selection)
    with torch.device("meta"):
        empty = build_network(info.network)
    save_checkpoint(out, empty, info, dtype, weights)
    return Path(out)


def local_checkpoint(name: str | Path) -> Path:
    """The path of a bundled checkpoint's name, or the path itself; refuses what is neither."""
    if Path(name).exists():
        return Path(name)
    bundled = bundled_checkpoints()
    if path := bundled.get(str(name)):
        return path
    known = [*bundled, *released_checkpoints()]
    kind = "checkpoint (no such file either)"
    raise ValueError(unknown(kind, str(name), known, "cmrepro checkpoints list"))


def read_checkpoint(
    path: Path,
    released: ReleasedCheckpoint | None = None,
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
            "file": path.name,
            "sha256": sha256(weights_file(path)),
            "format": kind,
            "conversion": CONVERSION_VERSION,
            "step": step,
        }
        fields["selection"] = {"rule": "as released" if released else "not stated"}
    return weights, to_struct(CheckpointInfo, default_sigmas() | fields, str(path))
