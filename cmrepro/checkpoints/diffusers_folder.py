"""Folders of diffusers' `UNet2DModel` and `ConsistencyModelPipeline`, without diffusers."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cmrepro.checkpoints.diffusers_names import (
    adm_config,
    adm_networks,
    from_diffusers,
    to_diffusers,
)
from cmrepro.checkpoints.io import read_safetensors_metadata, read_weights
from cmrepro.checkpoints.torch_files import read_torch_file
from cmrepro.files import make_folder
from cmrepro.networks.presets import IMAGE_SIZES
from cmrepro.records import CheckpointInfo
from cmrepro.schema import convert, to_builtins

WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_WEIGHTS = "diffusion_pytorch_model.bin"
PIPELINE = "ConsistencyModelPipeline"
DEFAULT_NUM_SCALES = 40  # of diffusers' scheduler, and of the released CD models
RHO = 7.0

# What UNet2DModel must be told to be an ADM U-Net whatever its widths; diffusers' own defaults but
# for the two resamplers.
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "resnet",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "resnet",
}
RESAMPLER_DEFAULTS = {"downsample_type": "conv", "upsample_type": "conv"}


def unet_config(network_name: str) -> dict[str, Any]:
    """The config.json of diffusers' `UNet2DModel` for one of our networks.

    Raises:
        ValueError: diffusers has no such network.
    """
    config = adm_config(network_name)
    attention = [2**i in config.attention_factors for i in range(len(config.channel_mult))]
    return FIXED | {
        "_class_name": "UNet2DModel",
        "sample_size": IMAGE_SIZES[network_name],
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "block_out_channels": [m * config.num_channels for m in config.channel_mult],
        "down_block_types": [
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention
        ],
        "up_block_types": [
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention)
        ],
        "attention_head_dim": config.num_head_channels,
        # Without it the middle attention of a scale-shift network loses its normalisation.
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        "num_class_embeds": config.num_classes or None,
    }


def read_unet_config(path: Path) -> dict[str, Any]:
    """The config.json of a folder's U-Net.

    Raises:
        ValueError: A broken file.
    """
    return _read_json(_unet_folder(path) / "config.json")


def folder_network(path: Path) -> str:
    """The preset that a folder's config.json describes.

    Raises:
        ValueError: A broken file, or none of ours; names the first difference from the nearest.
    """
    config = read_unet_config(path)
    path = _unet_folder(path) / "config.json"
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"{path} describes a {config.get('_class_name')}; allowed is a UNet2DModel"
        )
    ignored = {"attn_norm_num_groups"}  # older folders do not say it; their weights do
    differences: list[list[str]] = []
    for name in adm_networks():
        wanted = unet_config(name)
        got = {key: config.get(key, RESAMPLER_DEFAULTS.get(key, FIXED.get(key))) for key in wanted}
        different = [
            f"{key} is {got[key]}, '{name}' has {wanted[key]}"
            for key in wanted
            if key not in ignored and got[key] != wanted[key]
        ]
        if not different:
            return name
        differences.append(different)
    raise ValueError(
        f"{path} describes a U-Net that is none of ours: {min(differences, key=len)[0]}; only "
        "the ADM U-Nets of the released consistency models can be read"
    )


def grid_point(time: float, sigma_min: float, sigma_max: float) -> tuple[int, int]:
    """Index and number of points of the time grid on which `time` lies, N <= 1,001.

    diffusers names a sampling time by its index on a grid. A published time is found exactly (a
    grid may be found in its shortest form, e.g. point 53 of 101 for 106 of 201); any other is met
    to about 1e-5 relative.
    """
    largest, smallest = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
    ramp = (largest - time ** (1 / RHO)) / (largest - smallest)
    fraction = Fraction(ramp).limit_denominator(1000)
    return fraction.numerator, fraction.denominator + 1


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder holds a UNet2DModel or a pipeline with one."""
    return (_unet_folder(path) / "config.json").is_file()


def weights_file(path: Path) -> Path:
    """The file with the weights: safetensors, or the older pickled form where it is the only one.

    Raises:
        ValueError: There is neither.
    """
    folder = _unet_folder(path)
    for name in (WEIGHTS, OLD_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has a config.json but no {WEIGHTS}; download the folder again")


def folder_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a folder under diffusers' names, mapped, not read."""
    file = weights_file(path)
    if file.name == OLD_WEIGHTS:
        return read_torch_file(file)
    read_safetensors_metadata(file)
    return read_weights(file)


def read_folder_fields(path: Path) -> dict[str, Any]:
    """What a folder says of its model: fields of `CheckpointInfo`, all of them if we wrote it.

    The network is not among them in a folder that is not ours: `folder_network` finds it.

    Raises:
        ValueError: A broken file.
    """
    fields: dict[str, Any] = {}
    file = weights_file(path)
    if file.name == WEIGHTS and "cmrepro" in (metadata := read_safetensors_metadata(file)):
        try:
            info = convert(CheckpointInfo, json.loads(metadata["cmrepro"]), "")
            return to_builtins(info)
        except ValueError as error:
            raise ValueError(f"{file} has a broken header ({error}); copy it again") from error
    index, scheduler = path / "model_index.json", path / "scheduler" / "scheduler_config.json"
    if index.is_file() and _read_json(index).get("_class_name") == PIPELINE:
        fields["parameterization"] = "boundary"
    if scheduler.is_file():
        settings = _read_json(scheduler)
        for key in ("sigma_min", "sigma_max", "sigma_data"):
            if settings.get(key) is not None:
                fields[key] = float(settings[key])
    return fields


def read_diffusers_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under our names, and the fields of `CheckpointInfo` that the folder knows.

    Raises:
        ValueError: A broken file, a U-Net that is none of ours, or parameters that do not fit.
    """
    network = folder_network(path)
    fields = read_folder_fields(path) | {"network": network}
    weights = from_diffusers(folder_weights(path), fields["network"], str(weights_file(path)))
    return weights, fields


def write_diffusers_folder(
    path: Path, weights: Mapping[str, Tensor], info: CheckpointInfo, card: str
) -> None:
    """Write a folder that `ConsistencyModelPipeline.from_pretrained` opens.

    For an EDM teacher only its unet/ is written: that pipeline would sample it as if it were a
    consistency function.

    Args:
        path: A new or empty folder.
        weights: Of our network, as they are to be stored.
        info: Of the checkpoint; its two-step time decides the scheduler's grid.
        card: Text of README.md.

    Raises:
        ValueError: The folder is not empty or cannot be written, or diffusers has no such network.
    """
    config = unet_config(info.network)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; choose another")
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        named = to_diffusers(weights, adm_config(info.network))
        metadata = {"format": "pt", "cmrepro": json.dumps(to_builtins(info), sort_keys=True)}
        (temporary / "unet").mkdir()
        save_file(named, temporary / "unet" / WEIGHTS, metadata)
        _write_json(temporary / "unet" / "config.json", config)
        if info.parameterization == "boundary":
            (temporary / "scheduler").mkdir()
            scheduler = temporary / "scheduler" / "scheduler_config.json"
            _write_json(scheduler, scheduler_config(info))
            index = {
                "_class_name": PIPELINE,
                "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
                "unet": ["diffusers", "UNet2DModel"],
            }
            _write_json(temporary / "model_index.json", index)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # the latter for the system's errors of weights
        raise ValueError(
            f"cannot write {path} ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def scheduler_config(info: CheckpointInfo) -> dict[str, Any]:
    """Settings of diffusers' `CMStochasticIterativeScheduler` for Algorithm 1 with our times."""
    return {
        "_class_name": "CMStochasticIterativeScheduler",
        "num_train_timesteps": two_step_point(info)[1],
        "sigma_min": info.sigma_min,
        "sigma_max": info.sigma_max,
        "sigma_data": info.sigma_data,
        "rho": RHO,
        "s_noise": 1.0,
        "clip_denoised": True,
    }


def two_step_point(info: CheckpointInfo) -> tuple[int | None, int]:
    """Index of the second sampling time on the scheduler's grid, None without one; its points."""
    if info.two_step_time is None:
        return None, DEFAULT_NUM_SCALES
    return grid_point(info.two_step_time, info.sigma_min, info.sigma_max)


def _unet_folder(path: Path) -> Path:
    return path / "unet" if (path / "unet").is_dir() else path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download the folder again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object; download the folder again")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
