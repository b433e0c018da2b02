"""Inputs and outputs of the official code, and the small networks behind them.

tests/golden holds a subset (its README says which); the full set is used in the folder
CMREPRO_GOLDEN or in ../shared/golden, where it is there. Tests of cases in neither are skipped.
"""

import math
import os
import pathlib

import numpy as np
import pytest
import torch
from torch import Tensor

from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.networks.adm import ADMConfig, UNet

COMMITTED = pathlib.Path(__file__).with_name("golden")
FULL = pathlib.Path(
    os.environ.get("CMREPRO_GOLDEN", pathlib.Path(__file__).parents[2] / "shared" / "golden")
)

# create_model_args of adm/*/meta.json
ADM = {
    "cond": ADMConfig(32, (1, 1), 1, (2,), 16, num_classes=10),
    "uncond": ADMConfig(32, (1, 2), 1, (1, 2), 32, use_scale_shift_norm=False),
}
# Seeds of the weights, by the names of the files that hold them in the full set.
SEEDS = {
    "adm/cond/state_dict.npz": 1501,
    "adm/uncond/state_dict.npz": 1502,
    "cm_losses/params_student.npz": 1801,
    "ncsnpp/a/params.npz": 1101,
    "ncsnpp/b/params.npz": 1202,
    "ncsnpp/edm_tiny/params.npz": 1253,
    "jcm_losses/params_student.npz": 1401,
    "jcm_losses/params_target.npz": 1402,
    "jcm_losses/params_teacher.npz": 1403,
}


def path(name: str) -> pathlib.Path:
    """A stored file or folder; skips the test where it is absent."""
    for folder in (FULL, COMMITTED):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"needs the full set's {name}")


def arrays(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Arrays of an npz whose names begin with `prefix`, without it; skips where there are none."""
    with np.load(path(name), allow_pickle=False) as file:
        found = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
    if not found:
        pytest.skip(f"needs the full set's {name}: {prefix}")
    return {key.removeprefix(prefix): value for key, value in found.items()}


def normal_weights(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights of the file `name`: normal values of its seed in the order of the sorted names."""
    generator, flax = np.random.RandomState(SEEDS[name]), name.startswith(("ncsnpp", "jcm"))
    weights = {}
    for key, shape in sorted(shapes.items()):
        value, leaf = generator.standard_normal(shape), key.replace("/", ".").split(".")[-1]
        if leaf in ("bias", "b"):
            value = 0.1 * value
        elif leaf in ("scale", "weight") and len(shape) == 1:  # of a normalisation
            value = 1 + 0.1 * value
        elif "Fourier" in key:
            value = 16 * value
        elif not key.startswith("label_emb"):
            value = value / math.sqrt(math.prod(shape[:-1] if flax else shape[1:]))
        weights[key] = value.astype(np.float32)
    return weights


def times(num_scales: int) -> Tensor:
    """The official training grid, (N,) float32, up to 2e-6 from the exact one.

    Networks amplify that; with the same grid their outputs can be compared more closely.
    """
    stored = arrays("karras/time_grids.npz")
    return torch.cat([stored[f"train_t_N{num_scales}"], stored[f"train_tnext_N{num_scales}"][-1:]])


def adm_weights(case: str, name: str | None = None) -> dict[str, Tensor]:
    """Weights of adm/`case`, or those of another file for the same network."""
    shapes = {key: tuple(value.shape) for key, value in UNet(ADM[case]).state_dict().items()}
    weights = normal_weights(name or f"adm/{case}/state_dict.npz", shapes)
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def adm(case: str, weights: dict[str, Tensor] | None = None) -> UNet:
    """The network of adm/`case`, with other weights if given."""
    network = UNet(ADM[case])
    network.load_state_dict(weights or adm_weights(case))
    return network.eval()


def model(
    parameterization: Parameterization, case: str, weights: dict[str, Tensor] | None = None
) -> PreconditionedModel:
    """`adm` in the released code's parameterization."""
    return PreconditionedModel(adm(case, weights), parameterization)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    difference = got.detach().double() - expected.double()
    return float(difference.abs().max() / expected.double().abs().max())
