"""Stored inputs and outputs of the official JAX code, in torch's order of axes."""

import numpy as np
import torch
from golden import arrays, path
from torch import Tensor

from cmrepro.checkpoints.flax import ncsnpp_state_dict
from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig

# model_config of ncsnpp/*/meta.json and jcm_losses/meta.json
TINY = NCSNppConfig(num_channels=8, channel_mult=(1, 2), num_res_blocks=1)
NCSNPP = {
    "a": NCSNppConfig(num_channels=16, channel_mult=(1, 2, 2), num_res_blocks=1),
    "b": NCSNppConfig(num_channels=8, channel_mult=(2, 2, 2), num_res_blocks=2),
    "edm_tiny": TINY,
}

# The official names of `golden.WEIGHTINGS`
WEIGHTINGS = {"snr": "snr", "snrp1": "snr+1", "truncated_snr": "truncated-snr"}


def channels_first(images: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return images.permute(0, 3, 1, 2)


def images(name: str) -> dict[str, Tensor]:
    """As `golden.arrays`, with every array of four axes (images, not kernels) channels first."""
    return {
        key: channels_first(value) if value.ndim == 4 else value
        for key, value in arrays(name).items()
    }


def parameters(name: str) -> dict[str, np.ndarray]:
    """Flat flax tree of an npz below ../shared/golden."""
    with np.load(path(name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def network(name: str, config: NCSNppConfig) -> NCSNpp:
    """The NCSN++ with the parameters of an npz below ../shared/golden."""
    result = NCSNpp(config)
    result.load_state_dict(ncsnpp_state_dict(parameters(name), config))
    return result.eval()


def model(parameterization: Parameterization, who: str) -> PreconditionedModel:
    """The model of jcm_losses/params_`who`.npz."""
    return PreconditionedModel(network(f"jcm_losses/params_{who}.npz", TINY), parameterization)


def pairs(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`indices` and `times` of which the losses read exactly the stored t and s, (B,) each.

    The official grid differs from ours by some units in float32's last digit, which networks
    amplify.
    """
    return 2 * torch.arange(len(t)), torch.stack([t, s], dim=1).flatten()
