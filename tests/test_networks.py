"""The networks: outputs and names of the official ones, invariances, precision, closed forms."""

import copy
import json

import golden
import golden_jax
import pytest
import torch
from random_weights import randomise
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.checkpoints.flax import AXES, flax_names
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.solvers import ode_slope
from cmrepro.networks import cpu
from cmrepro.networks.adm import C_NOISE_SCALE, ADMConfig, PatchUNet, UNet
from cmrepro.networks.layers import SelfAttention, timestep_embedding
from cmrepro.networks.ncsnpp import (
    Attention,
    FourierEmbedding,
    NCSNpp,
    NCSNppConfig,
    ResBlock,
    group_norm,
)
from cmrepro.networks.presets import IMAGE_SIZES, PATCH_UNET, build_network

NETWORKS = pytest.mark.parametrize("name", ["cond", "uncond", "patch-unet", "ncsnpp"])


def new_network(name: str) -> nn.Module:
    if name in golden.ADM:
        return UNet(golden.ADM[name])
    return NCSNpp(golden_jax.TINY) if name == "ncsnpp" else build_network(name)


def inputs(name: str, batch: int = 3) -> list[Tensor]:
    """Arguments of the network."""
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = [torch.arange(batch)] if name == "cond" else []
    return [x, torch.linspace(-1.5, 1.1, batch), *labels]


@NETWORKS
def test_an_image_depends_on_its_arguments_and_not_on_its_batch(name: str) -> None:
    network, arguments = randomise(new_network(name)), inputs(name, batch=5)
    with torch.no_grad():
        together = network(*arguments)
        alone = torch.cat([network(*(a[i : i + 1] for a in arguments)) for i in range(5)])
        channels_last = network(
            arguments[0].contiguous(memory_format=torch.channels_last), *arguments[1:]
        )
        for i, argument in enumerate(arguments):
            changed = [*arguments]
            changed[i] = argument.roll(1, 0)
            for got, expected in zip(network(*changed), together, strict=True):
                assert golden.relative_error(got, expected) > 1e-2
    # Convolutions choose another blocking for another batch, so float32 sums differ in order.
    for got in (alone, channels_last):
        assert golden.relative_error(got, together) < 1e-5


# A mantissa of 8 or 11 bits, through some fifty roundings that partly cancel.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)], ids=["bf16", "fp16"]
)
@NETWORKS
def test_half_precision_is_close_to_float32(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    network, (x, *rest) = randomise(new_network(name)), inputs(name)
    with torch.no_grad():
        expected = network(x, *rest)
        with torch.autocast("cpu", dtype):
            outputs = [network(x, *rest)]
        converted = copy.deepcopy(network).to(dtype)
        outputs.append(converted(x, *rest))  # as PreconditionedModel calls it
        outputs.append(converted(x.to(dtype), *rest))
    for got in outputs:
        assert got.dtype == dtype
        assert 1e-5 < golden.relative_error(got, expected) < tolerance
    if name == "ncsnpp":
        assert torch.equal(converted.fourier.frequencies, network.fourier.frequencies)


@NETWORKS
def test_a_new_network_is_zero_and_trains_every_parameter(name: str) -> None:
    network, arguments = new_network(name), inputs(name)
    assert torch.equal(network(*arguments), torch.zeros_like(arguments[0]))
    randomise(network)(*arguments).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@NETWORKS
def test_labels_are_given_exactly_when_there_are_classes(name: str) -> None:
    x, c_noise, *labels = inputs(name)
    wrong = [] if labels else [torch.arange(3)]
    got = "got no labels" if labels else "got labels"
    with pytest.raises(ValueError, match=f"{got} for a network of {10 * len(labels)} classes"):
        new_network(name)(x, c_noise, *wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 8])  # 1: the sums of the weights would cost more
def test_upsample_conv_is_the_convolution_of_the_enlarged_image(
    size: int, dtype: torch.dtype
) -> None:
    x, conv = torch.randn(2, 6, size, size, dtype=dtype), nn.Conv2d(6, 4, 3, padding=1).to(dtype)
    torch.testing.assert_close(cpu.upsample_conv(x, conv), conv(F.interpolate(x, scale_factor=2)))


@pytest.mark.parametrize("channels", [32, 128])  # of 32 groups
def test_group_norm_is_torchs(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(16, channels, 8, 8, generator=generator)
    weight, bias = torch.randn(2, channels, generator=generator)
    expected = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5)
    with torch.no_grad():
        got = cpu.group_norm(
            x.contiguous(memory_format=torch.channels_last), 32, weight, bias, 1e-5
        )
    # Float32, values up to 10 over a mean of 3 that is subtracted.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def test_normalisation_is_computed_in_float32() -> None:
    x = (100 + torch.randn(1, 32, 8, 8)).bfloat16()
    with torch.no_grad():
        got = ADMConfig(32, (1,), 1, (), 32).norm(32)(x)
    assert got.dtype == torch.bfloat16
    groups = x.double().reshape(32, -1)
    mean, variance = groups.mean(1, keepdim=True), groups.var(1, keepdim=True, correction=0)
    expected = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    # Rounded to eight bits once, at the end; rounding the mean would be an error of 0.25.
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_adm_equals_the_official_network(case: str) -> None:
    network, stored = golden.adm(case), golden.arrays(f"adm/{case}/io.npz")
    with torch.no_grad():
        output = network(stored["x"], stored["timesteps"] / 1000, stored.get("y"))
    # Float32 through some twenty layers, summed in another order.
    assert golden.relative_error(output, stored["out"]) < 1e-5
    # 1000 ln(sigma) / 4 up to 1,100 in float32
    timesteps = C_NOISE_SCALE * stored["sigma"].log() / 4
    torch.testing.assert_close(timesteps, stored["timesteps"], rtol=1e-6, atol=0)
    embedding = timestep_embedding(stored["timesteps"], 32)
    # Cosines of angles up to 1,100, whose ulp in float32 is 1.2e-4.
    torch.testing.assert_close(embedding, stored["timestep_embedding"], rtol=0, atol=1.3e-4)


@pytest.mark.parametrize("name", ["adm-imagenet64", "adm-lsun256"])
def test_full_size_adm_networks_have_the_official_parameters(name: str) -> None:
    path = golden.path(f"manifests/{name.replace('-', '_')}.json")
    manifest = json.loads(path.read_text("utf-8"))
    with torch.device("meta"):
        network = build_network(name)
    got = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert got == [[key, shape] for key, shape, _ in manifest["params"]]
    assert sum(p.numel() for p in network.parameters()) == manifest["total_params"]
    config, args = network.config, manifest["create_model_args"]
    # What shapes cannot show.
    assert config.num_head_channels == args["num_head_channels"]
    assert config.use_scale_shift_norm == args["use_scale_shift_norm"]
    assert IMAGE_SIZES[name] == args["image_size"] and config.dropout == args["dropout"]
    attention = [m for m in network.modules() if isinstance(m, SelfAttention)]
    assert len(attention) == manifest["num_attention_blocks"]
    assert {m.qkv.in_channels // m.num_heads for m in attention} == {args["num_head_channels"]}


def test_patches_of_two_by_two_pixels_are_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(self: UNet, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(UNet, "forward", record)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(PatchUNet(PATCH_UNET)(x, torch.zeros(3)), x)
    pixels = x.reshape(3, 3, 4, 2, 4, 2)  # B, colour, then each axis as patch and pixel
    assert torch.equal(seen[0], pixels.permute(0, 1, 3, 5, 2, 4).reshape(3, 12, 4, 4))


# Float32 through up to fifty layers, summed in another order: 3e-6 observed.
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", golden_jax.NCSNPP)
def test_ncsnpp_consistency_function_and_denoiser_equal_the_official_ones(case: str) -> None:
    network = golden_jax.network(f"ncsnpp/{case}/params.npz", golden_jax.NCSNPP[case])
    stored = golden_jax.images(f"ncsnpp/{case}/io.npz")
    torch.testing.assert_close(stored["t"].log() / 4, stored["time_cond"], rtol=0, atol=2e-7)
    with torch.no_grad():
        output = network(stored["x"], stored["time_cond"])
    assert golden.relative_error(output, stored["out"]) < TOLERANCE
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
def test_ncsnpp_normalisation_equals_the_official_one(case: str) -> None:
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


def test_the_full_size_ncsnpp_has_the_official_parameters() -> None:
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


def test_initial_weights_of_ncsnpp_have_the_official_variance() -> None:
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
