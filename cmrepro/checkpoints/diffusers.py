"""Folders of diffusers' `UNet2DModel` and `ConsistencyModelPipeline`, without diffusers.

The layers are those of the ADM U-Net; only attention differs in form: what is one convolution
here, with its channels in the order (query/key/value, head, head channel), are three linear layers
there. The other networks have no counterpart in diffusers.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cmrepro.checkpoints.io import header, read_safetensors_metadata
from cmrepro.files import make_folder
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network
from cmrepro.records import CheckpointInfo
from cmrepro.schema import read_json, to_builtins

WEIGHTS = "diffusion_pytorch_model.safetensors"
OLD_WEIGHTS = "diffusion_pytorch_model.bin"
PIPELINE = "ConsistencyModelPipeline"
DEFAULT_NUM_SCALES = 40  # of diffusers' scheduler, and of the released CD models

RESNET = {
    **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
    **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
}
ATTENTION = {"norm": "group_norm", "qkv": "", "proj_out": "to_out.0"}
OUTSIDE = {
    **{"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"},
    **{"label_emb": "class_embedding", "input_blocks.0.0": "conv_in"},
    **{"out.0": "conv_norm_out", "out.2": "conv_out"},
}
# Settings that make a UNet2DModel an ADM U-Net of any width; diffusers' own defaults but for the
# two resamplers.
FIXED: dict[str, Any] = {
    **{"act_fn": "silu", "norm_eps": 1e-5, "norm_num_groups": 32, "mid_block_scale_factor": 1},
    **{"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0},
    **{"center_input_sample": False, "downsample_type": "resnet", "upsample_type": "resnet"},
}
RESAMPLER_DEFAULTS = {"downsample_type": "conv", "upsample_type": "conv"}


def adm_networks() -> dict[str, ADMConfig]:
    """The presets that have a counterpart in diffusers."""
    return {
        name: config
        for name, (network_class, config) in PRESETS.items()
        if network_class is UNet and isinstance(config, ADMConfig) and config.channel_mult[0] == 1
    }


def adm_config(network_name: str) -> ADMConfig:
    """The configuration of a network; refuses one without a counterpart in diffusers."""
    known = adm_networks()
    if network_name not in known:
        names = ", ".join(known)
        raise ValueError(f"network '{network_name}' is none of diffusers'; allowed are {names}")
    return known[network_name]


def unet_config(network_name: str) -> dict[str, Any]:
    """The config.json of diffusers' `UNet2DModel` for one of our networks."""
    config = adm_config(network_name)
    attention = [2**i in config.attention_factors for i in range(len(config.channel_mult))]
    down = ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention]
    up = ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attention)]
    return FIXED | {
        "_class_name": "UNet2DModel",
        "sample_size": IMAGE_SIZES[network_name],
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "block_out_channels": [m * config.num_channels for m in config.channel_mult],
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": config.num_head_channels,
        # Without it the middle attention of a scale-shift network loses its normalisation.
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        "num_class_embeds": config.num_classes or None,
    }


def module_names(config: ADMConfig) -> dict[str, str]:
    """Our name -> diffusers' name of every module with parameters (`qkv`: of its layer)."""
    names = dict(OUTSIDE)

    def add(ours: str, layer: str, parts: Mapping[str, str]) -> None:
        names.update({f"{ours}.{a}": f"{layer}.{b}".rstrip(".") for a, b in parts.items()})

    last = len(config.channel_mult) - 1
    block = 1
    for level in range(last + 1):
        for i in range(config.num_res_blocks):
            add(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}", RESNET)
            if 2**level in config.attention_factors:
                add(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}", ATTENTION)
            block += 1
        if level < last:
            add(f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0", RESNET)
            block += 1
    add("middle_block.0", "mid_block.resnets.0", RESNET)
    add("middle_block.1", "mid_block.attentions.0", ATTENTION)
    add("middle_block.2", "mid_block.resnets.1", RESNET)
    block = 0
    for up, level in enumerate(reversed(range(last + 1))):
        for i in range(config.num_res_blocks + 1):
            parts = [(f"up_blocks.{up}.resnets.{i}", RESNET)]
            if 2**level in config.attention_factors:
                parts.append((f"up_blocks.{up}.attentions.{i}", ATTENTION))
            if level and i == config.num_res_blocks:
                parts.append((f"up_blocks.{up}.upsamplers.0", RESNET))
            for j, (layer, kinds) in enumerate(parts):
                add(f"output_blocks.{block}.{j}", layer, kinds)
            block += 1
    return names


def to_diffusers(weights: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """Weights of our ADM U-Net under diffusers' names."""
    modules, result = module_names(config), {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        layer, attention = modules[module], module.endswith((".qkv", ".proj_out"))
        tensor = tensor.reshape(tensor.shape[:2]) if attention else tensor
        if module.endswith(".qkv"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{layer}.to_{part}.{kind}"] = rows
        else:
            result[f"{layer}.{kind}"] = tensor
    return result


def from_diffusers(weights: Mapping[str, Tensor], network_name: str) -> dict[str, Tensor]:
    """Weights under diffusers' names as those of our network, all of them."""
    modules, result = module_names(adm_config(network_name)), {}
    with torch.device("meta"):
        expected = build_network(network_name).state_dict()
    for name, parameter in expected.items():
        module, _, kind = name.rpartition(".")
        parts = [f"to_{part}.{kind}" for part in "qkv"] if module.endswith(".qkv") else [kind]
        tensors = [weights[f"{modules[module]}.{part}"] for part in parts]
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        result[name] = tensor.reshape(parameter.shape)
    return result


def _unet_folder(path: Path) -> Path:
    return path / "unet" if (path / "unet").is_dir() else path


def is_diffusers_folder(path: Path) -> bool:
    """True if a folder holds a UNet2DModel or a pipeline with one."""
    return (_unet_folder(path) / "config.json").is_file()


def folder_weights_file(path: Path) -> Path:
    """The file with the weights: safetensors, or the older pickled form without it."""
    folder = _unet_folder(path)
    for name in (WEIGHTS, OLD_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has a config.json but no {WEIGHTS}; download the folder again")


def folder_network(path: Path) -> str:
    """The preset that a folder's config.json describes; refuses any other U-Net."""
    path = _unet_folder(path) / "config.json"
    config = read_json(dict[str, Any], path)
    # The older of the published folders lack this key; their weights have the normalisation.
    got = FIXED | RESAMPLER_DEFAULTS | config | {"attn_norm_num_groups": 32}
    differences: dict[str, list[str]] = {
        name: [
            f"{key} is {got.get(key)}, '{name}' has {value}"
            for key, value in unet_config(name).items()
            if got.get(key) != value
        ]
        for name in adm_networks()
    }
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise ValueError(
            f"{path} describes a U-Net that is none of ours: {differences[nearest][0]}; only the "
            "ADM U-Nets of the released consistency models can be read"
        )
    return nearest


def folder_fields(path: Path) -> dict[str, Any]:
    """The fields of `CheckpointInfo` that a folder states; all of them if we wrote it."""
    fields: dict[str, Any] = {"network": folder_network(path)}
    file = folder_weights_file(path)
    if file.name == WEIGHTS and "cmrepro" in (metadata := read_safetensors_metadata(file)):
        return to_builtins(header(metadata["cmrepro"], file)) | fields
    index, scheduler = path / "model_index.json", path / "scheduler" / "scheduler_config.json"
    if index.is_file() and read_json(dict[str, Any], index).get("_class_name") == PIPELINE:
        fields["parameterization"] = "boundary"
    if scheduler.is_file():
        settings = read_json(dict[str, Any], scheduler)
        for key in ("sigma_min", "sigma_max", "sigma_data", "rho"):
            if settings.get(key) is not None:
                fields[key] = settings[key]
    return fields


def write_diffusers_folder(
    path: Path, weights: Mapping[str, Tensor], info: CheckpointInfo, card: str
) -> None:
    """Write a folder that `ConsistencyModelPipeline.from_pretrained` opens.

    Only the unet/ of an EDM teacher is written: that pipeline would sample it as if it were a
    consistency function.

    Args:
        path: A new or empty folder.
        weights: Weights of our network, as they are to be stored.
        info: Its two-step time decides the scheduler's grid.
        card: Text of README.md.

    Raises:
        ValueError: The folder is not empty or cannot be written, or diffusers has no such network.
    """
    contents: dict[str, Any] = {"unet/config.json": unet_config(info.network)}
    if info.parameterization == "boundary":
        scheduler = scheduler_config(info)
        classes = {"scheduler": scheduler["_class_name"], "unet": "UNet2DModel"}
        index = {part: ["diffusers", name] for part, name in classes.items()}
        contents["scheduler/scheduler_config.json"] = scheduler
        contents["model_index.json"] = {"_class_name": PIPELINE} | index
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; choose another")
    make_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
            temporary = Path(name) / path.name
            for file, content in contents.items():
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                (temporary / file).write_text(json.dumps(content, indent=2) + "\n")
            (temporary / "README.md").write_text(card, encoding="utf-8")
            metadata = {"format": "pt", "cmrepro": json.dumps(to_builtins(info), sort_keys=True)}
            named = to_diffusers(weights, adm_config(info.network))
            save_file(named, temporary / "unet" / WEIGHTS, metadata)
            os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors
        raise ValueError(
            f"cannot write {path} ({error}); free space or choose another folder"
        ) from error


def scheduler_config(info: CheckpointInfo) -> dict[str, Any]:
    """Settings of diffusers' `CMStochasticIterativeScheduler` for Algorithm 1 with our times."""
    return {
        "_class_name": "CMStochasticIterativeScheduler",
        "num_train_timesteps": two_step_point(info)[1],
        **{key: getattr(info, key) for key in ("sigma_min", "sigma_max", "sigma_data", "rho")},
        "s_noise": 1.0,
        "clip_denoised": True,
    }


def two_step_point(info: CheckpointInfo) -> tuple[int | None, int]:
    """Index (None without a second time) and number of points of the second time's grid.

    diffusers names a sampling time by its index on a time grid, here of up to 1,001 points. A
    published time is found exactly (maybe on a shorter grid: point 53 of 101 for 106 of 201); any
    other is met to about 1e-5 relative.
    """
    if info.two_step_time is None:
        return None, DEFAULT_NUM_SCALES
    largest, smallest, root = (
        sigma ** (1 / info.rho) for sigma in (info.sigma_max, info.sigma_min, info.two_step_time)
    )
    fraction = Fraction((largest - root) / (largest - smallest)).limit_denominator(1000)
    return fraction.numerator, fraction.denominator + 1
