"""From any checkpoint that can be read to ours, or to a diffusers folder; and its model card."""

import functools
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor

from cmrepro import __version__
from cmrepro.checkpoints.contents import (
    Format,
    TypedShapes,
    file_format,
    guess_network,
    here,
    nearest_network,
    tensor_shapes,
)
from cmrepro.checkpoints.diffusers_folder import (
    read_diffusers_folder,
    two_step_point,
    unet_config,
    weights_file,
    write_diffusers_folder,
)
from cmrepro.checkpoints.flax import ncsnpp_state_dict, read_flax_checkpoint
from cmrepro.checkpoints.io import (
    check_parameters,
    read_info,
    read_weights,
    stored_weights,
    write_checkpoint,
)
from cmrepro.checkpoints.registry import (
    ReleasedCheckpoint,
    default_sigmas,
    fetch_checkpoint,
    released_checkpoints,
)
from cmrepro.checkpoints.torch_files import PICKLE_ADVICE, read_torch_file
from cmrepro.consistency.parameterization import Parameterization
from cmrepro.files import atomic_path, sha256
from cmrepro.networks.ncsnpp import NCSNppConfig
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import CheckpointInfo, ConvertedFile
from cmrepro.schema import convert as to_struct
from cmrepro.schema import to_builtins
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
    """Write a checkpoint of any readable format as ours, or as a diffusers folder.

    Weights of a foreign format get a model card beside them, in the folder its README.md.

    Args:
        source: A released checkpoint's name (downloaded where necessary), a bundled one's, an
            official .pt or flax file, a diffusers folder, or one of our own checkpoints.
        out: File, or new folder; for a released name by default where `load_model` looks for it.
        to: "safetensors" (ours) or "diffusers".
        network: Name of the preset, for files that do not say; found by the shapes where None.
        parameterization: Likewise; necessary for .pt and flax files that are given by path.
        dtype: Type of the stored parameters: float32, float16 or bfloat16.
        two_step_time: Second sampling time; kept as it is where None.
        two_step_selection: How that time was chosen; None where given by hand.

    Returns:
        What was written.

    Raises:
        ValueError: Unknown source, broken or foreign file, parameters that do not fit the network
            (names one), something that the file does not say and was not given, a time outside the
            model's range, or a place that cannot be written.
    """
    entry = None if Path(source).exists() else released_checkpoints().get(str(source))
    if out is None and (entry is None or to != "safetensors"):
        raise ValueError(f"got no file to write {source} to; give one with --out")
    path = fetch_checkpoint(entry.name) if entry else here(str(source))
    kind = file_format(path)
    weights, said = read_source(path, kind, entry.network if entry else network)
    if entry:
        said |= released_fields(entry)
    said["network"] = _agreed(path, "network", said["network"], network)
    with torch.device("meta"):
        skeleton = build_network(said["network"])
    check_parameters(skeleton.state_dict(), weights, str(path), said["network"])
    said["parameterization"] = _agreed(
        path, "parameterization", said.get("parameterization"), parameterization
    )
    if said["parameterization"] is None:
        raise ValueError(
            f"{path} does not say whether it is a consistency function or an EDM denoiser; give "
            "--parameterization boundary or edm (released checkpoints are known by name)"
        )
    step = said.pop("steps", None)
    if entry or not (said.get("training") or said.get("converted")):
        said["converted"] = converted_file(path, kind, entry, step)
        said["selection"] = Selection(rule="as released" if entry else "not known")
    fields = default_sigmas() | to_builtins(said)
    info = with_choices(
        to_struct(CheckpointInfo, fields, str(path)), two_step_time, two_step_selection
    )
    stored = stored_weights(weights, skeleton, dtype)
    written = Path(out) if out is not None else released_checkpoints()[str(source)].converted
    if to == "diffusers":
        unet_config(info.network)  # refuses before the card is made
        card = model_card(info, dtype, written.name, two_step_point(info)[0])
        write_diffusers_folder(written, stored, info, card)
        return written
    write_checkpoint(written, stored, info)
    if info.converted:
        with atomic_path(written.with_suffix(".md")) as temporary:
            temporary.write_text(model_card(info, dtype, written.stem), encoding="utf-8")
    return written


def read_source(
    path: Path, kind: Format, network: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under our names, and what the file says of itself: fields of `CheckpointInfo`.

    Args:
        path: File or folder.
        kind: Its format.
        network: Name of the preset; found by names and shapes where None. Only asked for files
            that do not say it.

    Raises:
        ValueError: A broken file, or no network of ours has these parameters.
    """
    if kind == "safetensors":
        said = to_builtins(read_info(path))
        return read_weights(path), said
    if kind == "diffusers":
        return read_diffusers_folder(path)
    if kind == "pickle":
        raise ValueError(f"{path} is a Python pickle: {PICKLE_ADVICE}")
    if kind == "torch":
        weights = read_torch_file(path)
        network = network or _guessed(path, kind, tensor_shapes(weights))
        return weights, {"network": network}
    checkpoint = read_flax_checkpoint(path)
    shapes = {name: (str(a.dtype), a.shape) for name, a in checkpoint.parameters.items()}
    network = network or _guessed(path, kind, shapes)
    config = PRESETS[network][1] if network in PRESETS else None
    if not isinstance(config, NCSNppConfig):
        fitting = [name for name, (_, c) in PRESETS.items() if isinstance(c, NCSNppConfig)]
        raise ValueError(
            f"{path} is a flax checkpoint, got network '{network}'; allowed are "
            f"{', '.join(fitting)}"
        )
    weights = ncsnpp_state_dict(checkpoint.parameters, config, str(path))
    return weights, {"network": network, "steps": checkpoint.step}


def released_fields(entry: ReleasedCheckpoint) -> dict[str, Any]:
    """What the registry knows of a checkpoint: fields of `CheckpointInfo`."""
    return {
        "network": entry.network,
        "parameterization": entry.parameterization,
        "sigma_data": entry.sigma_data,
        "sigma_min": entry.sigma_min,
        "sigma_max": entry.sigma_max,
        "two_step_time": entry.two_step_time,
        "training": entry.training,
    }


def converted_file(
    path: Path, kind: Format, entry: ReleasedCheckpoint | None, step: int | None
) -> ConvertedFile:
    """The source of weights that were not trained here, for the header."""
    source = {"name": entry.name, "url": entry.url, "licence": entry.licence} if entry else {}
    file = weights_file(path) if kind == "diffusers" else path
    fields = {
        "file": path.name,
        "sha256": sha256(file),
        "format": kind,
        "conversion": CONVERSION_VERSION,
        "step": step,
    }
    return to_struct(ConvertedFile, fields | source, "")


def with_choices(
    info: CheckpointInfo, two_step_time: float | None, two_step_selection: Selection | None
) -> CheckpointInfo:
    """`info` with another second sampling time, kept where None.

    Raises:
        ValueError: The time is outside the model's range.
    """
    if two_step_time is not None:
        if not info.sigma_min < two_step_time < info.sigma_max:
            raise ValueError(
                f"got two-step time {two_step_time:g}; allowed is between {info.sigma_min:g} and "
                f"{info.sigma_max:g}"
            )
        info = info.replace(two_step_time=two_step_time, two_step_selection=two_step_selection)
    return info


def model_card(
    info: CheckpointInfo, dtype: torch.dtype, title: str, timestep: int | None = None
) -> str:
    """Origin, licence and intended use, as Markdown.

    Args:
        info: Of the checkpoint.
        dtype: Type of its stored parameters.
        title: Heading.
        timestep: Second time of two-step sampling as diffusers counts it, for a folder.
    """
    name = info.converted.name if info.converted else None
    released = released_checkpoints().get(name or "")
    return _template().render(
        title=title,
        info=info,
        released=released,
        dtype=str(dtype).removeprefix("torch."),
        version=__version__,
        timestep=timestep,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2")


def _agreed(path: Path, what: str, said: str | None, asked: str | None) -> Any:
    if said and asked and said != asked:
        raise ValueError(f"{path} is of {what} '{said}', got --{what} {asked}; leave it out")
    return said or asked


def _guessed(path: Path, kind: Format, shapes: TypedShapes) -> str:
    network = guess_network(kind, shapes)
    if network is None:
        raise ValueError(
            f"{path} ({kind}) has the parameters of no network of ours; "
            f"{nearest_network(kind, shapes)}; name another one with --network to see what "
            f"differs: {', '.join(PRESETS)}"
        )
    return network
