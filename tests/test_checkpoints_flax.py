"""The official flax files: what is read and refused, how the parameters are renamed."""

import pathlib
import tracemalloc

import golden
import golden_jax
import msgpack
import numpy as np
import pytest
import torch
from official_files import ema_tree, packed
from random_weights import randomise

from cmrepro.checkpoints.flax import ncsnpp_state_dict, read_flax_checkpoint
from cmrepro.networks.ncsnpp import NCSNpp
from cmrepro.schema import flat


@pytest.mark.parametrize(
    ("case", "name", "step"),
    [("b", "checkpoint_74", 740_000), ("edm_tiny", "edm_cifar10_ema", 400_000)],
)
def test_official_files_hold_the_stored_parameters(case: str, name: str, step: int) -> None:
    parameters, got_step = read_flax_checkpoint(golden.path(f"ncsnpp/{case}/{name}"))
    expected = golden_jax.parameters(f"ncsnpp/{case}/params.npz")
    assert parameters.keys() == expected.keys()
    for key, value in expected.items():
        assert parameters[key].dtype == value.dtype, key
        np.testing.assert_array_equal(parameters[key], value)
    assert got_step == step


def test_kernels_are_transposed() -> None:
    """Convolutions (height, width, in, out), linear layers y = x W with W (in, out)."""
    network = randomise(NCSNpp(golden_jax.TINY))
    weights = network.state_dict()
    tree = ema_tree(weights, network)
    kernel = tree["ResnetBlockBigGANpp_2"]["Conv_0"]["kernel"]  # (3, 3, 8, 16)
    ours = weights["down_levels.1.blocks.0.conv1.weight"]
    np.testing.assert_array_equal(ours.permute(2, 3, 1, 0), kernel)
    np.testing.assert_array_equal(weights["time_embed.0.weight"].T, tree["Dense_0"]["kernel"])
    parameters = {name.replace(".", "/"): array for name, array in flat(tree).items()}
    back = ncsnpp_state_dict(parameters, golden_jax.TINY)
    assert list(back) == list(weights)
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_memory_beyond_the_result_is_small(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    parameters = {
        f"W{i}": generator.standard_normal((250, 1000)).astype(np.float32) for i in range(6)
    }
    trees = dict.fromkeys(("params", "target_params", "params_ema", "mu", "nu"), parameters)
    path = tmp_path / "checkpoint_80"
    path.write_bytes(msgpack.packb(trees, default=packed))
    size, result = path.stat().st_size, sum(w.nbytes for w in parameters.values())
    assert size > 30e6 and result < 0.21 * size
    tracemalloc.start()
    got, _ = read_flax_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got.keys() == parameters.keys()
    # 0.11 of the file observed: copies of one array, a thirtieth of it each, in the decoder
    assert result < peak < result + 0.2 * size
