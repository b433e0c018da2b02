"""Stored inputs and outputs of the official code, beside the repository in ../shared/golden.

Tests that need them are skipped where the folder is absent.
"""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.networks.adm import ADMConfig, UNet

FOLDER = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "golden"

# create_model_args of adm/*/meta.json
ADM = {
    "cond": ADMConfig(
        num_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_factors=(2,),
        num_head_channels=16,
        num_classes=10,
    ),
    "uncond": ADMConfig(
        num_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_factors=(1, 2),
        num_head_channels=32,
        use_scale_shift_norm=False,
    ),
}


def path(name: str) -> pathlib.Path:
    """A file or folder below ../shared/golden; skips the test where the folder is absent."""
    if not FOLDER.is_dir():
        pytest.skip("needs ../shared/golden")
    return FOLDER / name


def arrays(name: str) -> dict[str, Tensor]:
    """All arrays of an npz below ../shared/golden."""
    with np.load(path(name), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def times(num_scales: int) -> Tensor:
    """The official training grid, (N,) float32, up to 2e-6 from the exact one.

    Networks amplify that; with the same grid their outputs can be compared more closely.
    """
    stored = arrays("karras/time_grids.npz")
    return torch.cat([stored[f"train_t_N{num_scales}"], stored[f"train_tnext_N{num_scales}"][-1:]])


def adm(case: str, weights: dict[str, Tensor] | None = None) -> UNet:
    """The network of adm/`case` with the stored weights, or with others of its shape."""
    network = UNet(ADM[case])
    network.load_state_dict(weights or arrays(f"adm/{case}/state_dict.npz"))
    return network.eval()


def model(
    parameterization: Parameterization, case: str, weights: dict[str, Tensor] | None = None
) -> PreconditionedModel:
    """`adm` in the released code's parameterization."""
    return PreconditionedModel(adm(case, weights), parameterization)


# What the official losses can multiply each image by. The released models use "uniform" (CD, CT),
# "karras" (EDM, with sigma_data = 0.5) and "truncated-snr" (progressive distillation).
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "snr": lambda t: t**-2,
    "snr+1": lambda t: t**-2 + 1,
    "karras": lambda t: t**-2 + 0.5**-2,
    "truncated-snr": lambda t: (t**-2).clamp(min=1),
}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    difference = got.detach().double() - expected.double()
    return float(difference.abs().max() / expected.double().abs().max())
