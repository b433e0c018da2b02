"""The ADM U-Net's parameters under diffusers' names.

The layers are the same; only attention differs in form: what is one convolution here, with its
channels in the order (query/key/value, head, head channel), are three linear layers there. Of the
other networks diffusers has no counterpart.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmrepro.checkpoints.io import check_parameters
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import PRESETS, build_network

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "", "proj_out": "to_out.0"}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def adm_networks() -> dict[str, ADMConfig]:
    """The presets that diffusers has a counterpart of."""
    return {
        name: config
        for name, (network_class, config) in PRESETS.items()
        if network_class is UNet and isinstance(config, ADMConfig) and config.channel_mult[0] == 1
    }


def adm_config(network_name: str) -> ADMConfig:
    """The shape of a network that diffusers has a counterpart of.

    Raises:
        ValueError: It has none.
    """
    known = adm_networks()
    if network_name not in known:
        raise ValueError(
            f"network '{network_name}' has no counterpart in diffusers; allowed are "
            f"{', '.join(known)}"
        )
    return known[network_name]


def module_names(config: ADMConfig) -> dict[str, str]:
    """Our name -> diffusers' name of every module with parameters.

    The name of an attention layer's `qkv` leads to that of the layer, which there holds `to_q`,
    `to_k` and `to_v`.
    """
    names = dict(OUTSIDE)

    def add(ours: str, theirs: str, parts: Mapping[str, str]) -> None:
        names.update({f"{ours}.{a}": f"{theirs}.{b}".rstrip(".") for a, b in parts.items()})

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
            for j, (theirs, kinds) in enumerate(parts):
                add(f"output_blocks.{block}.{j}", theirs, kinds)
            block += 1
    return names


def to_diffusers(weights: Mapping[str, Tensor], config: ADMConfig) -> dict[str, Tensor]:
    """Weights of our ADM U-Net under diffusers' names."""
    modules, result = module_names(config), {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        theirs = modules[module]
        if module.endswith(".qkv"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{theirs}.to_{part}.{kind}"] = rows.reshape(rows.shape[:2])
        elif module.endswith(".proj_out"):
            result[f"{theirs}.{kind}"] = tensor.reshape(tensor.shape[:2])
        else:
            result[f"{theirs}.{kind}"] = tensor
    return result


def from_diffusers(
    weights: Mapping[str, Tensor], network_name: str, source: str
) -> dict[str, Tensor]:
    """Weights under diffusers' names as those of our network.

    Raises:
        ValueError: Names the first missing, surplus or misshapen parameter.
    """
    config = adm_config(network_name)
    with torch.device("meta"):
        ours = build_network(network_name).state_dict()
    check_parameters(to_diffusers(ours, config), weights, source, network_name)
    modules, result = module_names(config), {}
    for name, expected in ours.items():
        module, _, kind = name.rpartition(".")
        theirs = modules[module]
        if module.endswith(".qkv"):
            tensor = torch.cat([weights[f"{theirs}.to_{part}.{kind}"] for part in "qkv"])
        else:
            tensor = weights[f"{theirs}.{kind}"]
        result[name] = tensor.reshape(expected.shape)
    return result
