"""From a checkpoint of any supported format to ours, or to a diffusers folder."""

from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor

from cmrepro.checkpoints.diffusers import two_step_point, unet_config, write_diffusers_folder
from cmrepro.checkpoints.formats import read_contents, weights_file
from cmrepro.checkpoints.io import bundled_checkpoints, stored_weights, write_checkpoint
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
from cmrepro.schema import to_builtins, unknown
from cmrepro.settings import Selection

# Goes into the header; rises with every change that would give other bytes from the same source.
CONVERSION_VERSION = 2

Target = Literal["safetensors", "diffusers"]


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    to: Target = "safetensors",
    network: str | None = None,
    parameterization: Parameterization | None = None,
    dtype: torch.dtype = torch.float32,
    two_step_time: float | None = None,
    two_step_selection: Selection | None = None,
) -> Path:
    """Write a checkpoint of any supported format as ours, or as a diffusers folder.

    Args:
        source: As for `load_model`.
        out: File, or new folder; for a released name by default the cache.
        to: "safetensors" (ours) or "diffusers".
        network: Name of the preset, for files that do not state it; by default found by shapes.
        parameterization: Likewise; necessary for .pt and flax files given by path.
        dtype: Type of the stored parameters: float32, float16 or bfloat16.
        two_step_time: Second sampling time; by default that of the source.
        two_step_selection: How that time was chosen; None if given by hand.

    Returns:
        The path that was written.

    Raises:
        ValueError: Unknown source, broken or foreign file, parameters that do not fit the network,
            a setting that is not stated, a time outside the model's range, or a path that cannot
            be written.
    """
    entry = None if Path(source).exists() else released_checkpoints().get(str(source))
    if out is None and (entry is None or to != "safetensors"):
        raise ValueError(f"got no file to write {source} to; give one with --out")
    path = fetch_checkpoint(entry.name) if entry else local_checkpoint(source)
    weights, info = read_checkpoint(path, entry, network, parameterization)
    if two_step_time is not None:
        if not info.sigma_min < two_step_time < info.sigma_max:
            raise ValueError(
                f"got two-step time {two_step_time:g}; allowed is between {info.sigma_min:g} and "
                f"{info.sigma_max:g}"
            )
        info = info.replace(two_step_time=two_step_time, two_step_selection=two_step_selection)
    with torch.device("meta"):
        stored = stored_weights(weights, build_network(info.network), dtype)
    written = Path(out) if out is not None else released_checkpoints()[str(source)].converted
    if to == "diffusers":
        unet_config(info.network)  # refuses before the card is made
        write_diffusers_folder(written, stored, info, model_card(info, written.name))
    else:
        write_checkpoint(written, stored, info)
    return written


def local_checkpoint(name: str | Path) -> Path:
    """The path of a bundled checkpoint's name, or the path itself; refuses what is neither."""
    bundled = bundled_checkpoints()
    if Path(name).exists():
        return Path(name)
    if str(name) not in bundled:
        known = [*bundled, *released_checkpoints()]
        kind = "checkpoint (no such file either)"
        raise ValueError(unknown(kind, str(name), known, "cmrepro checkpoints list"))
    return bundled[str(name)]


def read_checkpoint(
    path: Path,
    released: ReleasedCheckpoint | None = None,
    network: str | None = None,
    parameterization: Parameterization | None = None,
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Weights under our names, and their header; arguments as for `convert`.

    Args:
        path: File or folder of any supported format.
        released: Its entry in the registry, where it has one.
        network: For files that do not state it.
        parameterization: Likewise.
    """
    kind, weights, fields, step = read_contents(path, released.network if released else network)
    fields |= released_fields(released) if released else {}
    for key, value in {"network": network, "parameterization": parameterization}.items():
        if value and fields.setdefault(key, value) != value:
            raise ValueError(
                f"{path} is of {key} '{fields[key]}', got --{key} {value}; leave it out"
            )
    if "parameterization" not in fields:
        raise ValueError(
            f"{path} does not state if it is a consistency function or an EDM denoiser; give "
            "--parameterization boundary or edm (released checkpoints are known by name)"
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


def released_fields(entry: ReleasedCheckpoint) -> dict[str, Any]:
    """The fields of `CheckpointInfo` that the registry knows."""
    keys = ("network", "parameterization", "sigma_data", "sigma_min", "sigma_max", "two_step_time")
    return {key: getattr(entry, key) for key in keys} | {"training": to_builtins(entry.training)}


def model_card(info: CheckpointInfo, title: str) -> str:
    """Source, use and licence of the weights in a diffusers folder, as Markdown."""
    released = released_checkpoints().get((info.converted and info.converted.name) or "")
    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, trim_blocks=True, undefined=jinja2.StrictUndefined)
    timestep = two_step_point(info)[0]
    return template.render(title=title, info=info, released=released, timestep=timestep)
