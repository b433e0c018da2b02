"""Inputs and outputs of the official JAX code, in torch's order of axes."""

import numpy as np
from golden import arrays, normal_weights
from torch import Tensor

from cmrepro.checkpoints.flax import AXES, flax_names, ncsnpp_state_dict
from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig

# model_config of ncsnpp/*/meta.json and jcm_losses/meta.json
TINY = NCSNppConfig(num_channels=8, channel_mult=(1, 2), num_res_blocks=1)
NCSNPP = {
    "a": NCSNppConfig(num_channels=16, channel_mult=(1, 2, 2), num_res_blocks=1),
    "b": NCSNppConfig(num_channels=8, channel_mult=(2, 2, 2), num_res_blocks=2),
    "edm_tiny": TINY,
}


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
    """Flat flax tree of the file `name`."""
    network = NCSNpp(NCSNPP.get(name.split("/")[1], TINY))
    names, shapes = flax_names(network), {}
    for key, value in network.state_dict().items():
        shapes[names[key]] = tuple(value.shape[axis] for axis in np.argsort(AXES[value.ndim]))
    return normal_weights(name, shapes)


def network(name: str, config: NCSNppConfig) -> NCSNpp:
    """The NCSN++ with the parameters of the file `name`."""
    result = NCSNpp(config)
    result.load_state_dict(ncsnpp_state_dict(parameters(name), config))
    return result.eval()


def model(parameterization: Parameterization, who: str) -> PreconditionedModel:
    """The model of jcm_losses/params_`who`.npz."""
    return PreconditionedModel(network(f"jcm_losses/params_{who}.npz", TINY), parameterization)
