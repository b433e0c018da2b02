"""Read folders of diffusers' `UNet2DModel` and `ConsistencyModelPipeline`, without diffusers.

The layers are those of the ADM U-Net; only attention differs in form: what is one convolution
here, with its channels in the order (query/key/value, head, head channel), are three linear layers
there. The other networks have no counterpart in diffusers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrepro.checkpoints.locate import pipeline_folder, unet_folder
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import IMAGE_SIZES, PRESETS, build_network
from cmrepro.schema import read_json

RESNET = {
    **{"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"},
    **{"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"},
}
ATTENTION = {"norm": "group_norm", "qkv": "to_q to_k to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OUTSIDE = {
    **{"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"},
    **{"label_emb": "class_embedding", "input_blocks.0.0": "conv_in"},
    **{"out.0": "conv_norm_out", "out.2": "conv_out"},
}
# Settings of an ADM U-Net of any width: diffusers' own defaults but for the two resamplers.
FIXED: dict[str, Any] = {
    **{"act_fn": "silu", "norm_eps": 1e-5, "norm_num_groups": 32, "mid_block_scale_factor": 1},
    **{"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0},
    **{"center_input_sample": False, "downsample_type": "resnet", "upsample_type": "resnet"},
}


def adm_networks() -> dict[str, ADMConfig]:
    """The presets that have a counterpart in diffusers, with their settings."""
    return {
        name: config
        for name, (network_class, config) in PRESETS.items()
        if network_class is UNet and isinstance(config, ADMConfig) and config.channel_mult[0] == 1
    }


def unet_config(network_name: str) -> dict[str, Any]:
    """The config.json of diffusers' `UNet2DModel` for one of `adm_networks`."""
    config = adm_networks()[network_name]
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


def module_names(config: ADMConfig) -> dict[str, list[str]]:
    """Our name -> diffusers' name, or names, of every module with parameters."""
    last, n = len(config.channel_mult) - 1, config.num_res_blocks
    middle = [f"mid_block.{layer}" for layer in ("resnets.0", "attentions.0", "resnets.1")]
    down: list[list[str]] = []
    up: list[list[str]] = []
    for level in range(last + 1):
        kinds = ["resnets"] + ["attentions"] * (2**level in config.attention_factors)
        down += [[f"down_blocks.{level}.{kind}.{i}" for kind in kinds] for i in range(n)]
        down += [[f"down_blocks.{level}.downsamplers.0"]] * (level < last)
        blocks = [[f"up_blocks.{last - level}.{kind}.{i}" for kind in kinds] for i in range(n + 1)]
        blocks[-1] += [f"up_blocks.{last - level}.upsamplers.0"] * (level > 0)
        up = blocks + up  # from the lowest resolution to the highest
    layers = {"middle_block": middle}
    layers |= {f"input_blocks.{i}": block for i, block in enumerate(down, start=1)}
    layers |= {f"output_blocks.{i}": block for i, block in enumerate(up)}
    return {ours: [name] for ours, name in OUTSIDE.items()} | {
        f"{block}.{i}.{ours}": [f"{layer}.{part}" for part in parts.split()]
        for block, block_layers in layers.items()
        for i, layer in enumerate(block_layers)
        for ours, parts in (ATTENTION if ".attentions." in layer else RESNET).items()
    }


def to_diffusers(weights: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """Weights of our ADM U-Net under diffusers' names."""
    modules, result = module_names(config), dict[str, Tensor]()
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        attention, layers = module.endswith((".qkv", ".proj_out")), modules[module]
        tensor = tensor.reshape(tensor.shape[:2]) if attention else tensor
        parts = zip(layers, tensor.chunk(len(layers)), strict=True)
        result |= {f"{layer}.{kind}": rows for layer, rows in parts}
    return result


def from_diffusers(weights: Mapping[str, Tensor], network_name: str) -> dict[str, Tensor]:
    """Weights under diffusers' names, those of all parameters, as weights of our network."""
    modules, result = module_names(adm_networks()[network_name]), {}
    with torch.device("meta"):
        expected = build_network(network_name).state_dict()
    for name, parameter in expected.items():
        module, _, kind = name.rpartition(".")
        tensors = [weights[f"{layer}.{kind}"] for layer in modules[module]]
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        result[name] = tensor.reshape(parameter.shape)
    return result


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the attention's names of diffusers before 0.17 replaced by the later ones."""
    old = re.compile(rf"(?<=\.)({'|'.join(OLD_ATTENTION)})(?=\.(weight|bias)$)")
    return {old.sub(lambda m: OLD_ATTENTION[m[1]], name): x for name, x in weights.items()}


def folder_fields(path: Path) -> dict[str, Any]:
    """The fields of `CheckpointInfo` that a folder states, or that of a file of weights.

    Refuses a U-Net that is no preset.
    """
    root = pipeline_folder(path) if path.is_dir() else path.parent
    file = (unet_folder(path) if path.is_dir() else root) / "config.json"
    if not file.is_file():
        return {}
    defaults = FIXED | {"downsample_type": "conv", "upsample_type": "conv"}
    # The older of the published folders lack this key; their weights have the normalisation.
    got = defaults | read_json(dict[str, Any], file) | {"attn_norm_num_groups": 32}
    if got.get("sample_size") in [[n, n] for n in IMAGE_SIZES.values()]:
        got["sample_size"] = got["sample_size"][0]
    differences = {
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
            f"{file} describes a U-Net that is none of ours: {differences[nearest][0]}; allowed "
            "are the ADM U-Nets of the released consistency models"
        )
    index, scheduler = (
        read_json(dict[str, Any], root / name) if (root / name).is_file() else {}
        for name in ("model_index.json", "scheduler/scheduler_config.json")
    )
    is_pipeline = index.get("_class_name") == "ConsistencyModelPipeline"
    keys = ("sigma_min", "sigma_max", "sigma_data", "rho")
    return (
        {"network": nearest}
        | ({"parameterization": "boundary"} if is_pipeline else {})
        | {key: scheduler[key] for key in keys if scheduler.get(key) is not None}
    )
