"""The NCSN++: outputs, modules and names of the official network, closed forms."""

import json

import golden
import golden_jax
import pytest
import torch

from cmrepro.checkpoints.flax import AXES, flax_names
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.solvers import ode_slope
from cmrepro.networks.ncsnpp import (
    Attention,
    FourierEmbedding,
    NCSNppConfig,
    ResBlock,
    group_norm,
)
from cmrepro.networks.presets import IMAGE_SIZES, build_network

# Float32 through up to fifty layers, summed in another order: 3e-6 observed.
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", golden_jax.NCSNPP)
def test_outputs_equal_the_official_network(case: str) -> None:
    network = golden_jax.network(f"ncsnpp/{case}/params.npz", golden_jax.NCSNPP[case])
    stored = golden_jax.images(f"ncsnpp/{case}/io.npz")
    torch.testing.assert_close(stored["t"].log() / 4, stored["time_cond"], rtol=0, atol=2e-7)
    with torch.no_grad():
        output = network(stored["x"], stored["time_cond"])
    assert golden.relative_error(output, stored["out"]) < TOLERANCE


@pytest.mark.parametrize("case", golden_jax.NCSNPP)
def test_consistency_function_and_denoiser_equal_the_official_ones(case: str) -> None:
    network = golden_jax.network(f"ncsnpp/{case}/params.npz", golden_jax.NCSNPP[case])
    stored = golden_jax.images(f"ncsnpp/{case}/io.npz")
    f, denoiser = (PreconditionedModel(network, kind) for kind in ("boundary", "edm"))
    x, t = stored["f_x"], stored["f_t"]
    # One float32 rounding of numbers up to 2, and the ulp of log(80) / 4.
    for name, got in zip(("c_skip", "c_out", "c_in"), f.scalings(t), strict=True):
        torch.testing.assert_close(got, stored[name], rtol=1e-6, atol=3e-8)
    for name, got in zip(("edm_c_skip", "edm_c_out"), denoiser.scalings(t), strict=False):
        torch.testing.assert_close(got, stored[name], rtol=1e-6, atol=0)
    torch.testing.assert_close(t.log() / 4, stored["f_time_cond"], rtol=0, atol=2e-7)
    with torch.no_grad():
        assert golden.relative_error(f(x, t), stored["f_out"]) < TOLERANCE
        denoised = denoiser(x, t)
    assert golden.relative_error(denoised, stored["denoiser_out"]) < TOLERANCE
    score = -ode_slope(x, denoised, t) / t[:, None, None, None]
    # At t = 0.002 the difference x - D loses three digits.
    norm = score.flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, stored["score_out_norm"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["gn_wide", "gn_small_var"])
def test_normalisation_equals_the_official_one(case: str) -> None:
    stored = golden.arrays("ncsnpp_modules/modules.npz")
    x, expected = (golden_jax.channels_first(stored[f"{case}.{k}"]) for k in ("x", "out"))
    norm = group_norm(x.shape[1])
    norm.load_state_dict(
        {"weight": stored[f"{case}.param.scale"], "bias": stored[f"{case}.param.bias"]}
    )
    with torch.no_grad():
        # The official variance is the mean of squares less the squared mean, in float32.
        assert golden.relative_error(norm(x), expected) < 1e-5
        norm.eps = 1e-5  # the usual one: where the variance is small, the test can tell
        assert case == "gn_wide" or golden.relative_error(norm(x), expected) > 1e-2


def test_the_full_size_network_has_the_official_parameters() -> None:
    manifest = json.loads(golden.path("manifests/cifar10_ncsnpp.json").read_text("utf-8"))
    with torch.device("meta"):
        network = build_network("ncsnpp-cifar10")
    names, weights = flax_names(network), network.state_dict()
    assert {official: list(weights[ours].shape) for ours, official in names.items()} == {
        name: [shape[axis] for axis in AXES[len(shape)]] for name, shape, _ in manifest["params"]
    }
    assert len(weights) == manifest["num_arrays"]
    assert sum(w.numel() for w in weights.values()) == manifest["total_params"]
    assert sum(p.numel() for p in network.parameters()) == manifest["trainable_params"]
    config = manifest["model_config"]  # what shapes cannot show
    assert network.config == NCSNppConfig(
        config["nf"], tuple(config["ch_mult"]), config["num_res_blocks"], config["dropout"]
    )
    assert config["attn_resolutions"] == [IMAGE_SIZES["ncsnpp-cifar10"] // 2]


def test_initial_weights_have_the_official_variance() -> None:
    torch.manual_seed(0)
    block = ResBlock(64, 64, NCSNppConfig(64, (1,), 1))
    attention, embedding = Attention(64), FourierEmbedding(4096)
    # Variance 1 / mean(fan_in, fan_out) times the scale: 3x3 of 64, 256 -> 64, 64 -> 64.
    for weight, variance in [
        (block.conv1.weight, 1 / 576),
        (block.emb.weight, 1 / 160),
        (attention.query.weight, 0.1 / 64),
        (embedding.frequencies, 16.0**2),
    ]:
        # At least 2,048 values: the sample variance deviates by 3 % (one sigma of a normal one).
        assert weight.var().item() == pytest.approx(variance, rel=0.1)
    assert not block.conv1.bias.any() and not block.conv2.weight.any()
