"""What all networks have in common: invariances, precision, labels; the forms for the CPU."""

import copy

import golden
import golden_jax
import pytest
import torch
from random_weights import randomise
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.networks import cpu
from cmrepro.networks.adm import UNet
from cmrepro.networks.ncsnpp import NCSNpp
from cmrepro.networks.presets import DEMO, build_network

NETWORKS = pytest.mark.parametrize("name", ["cond", "uncond", "demo", "ncsnpp"])


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
        got = DEMO.norm(32)(x)
    assert got.dtype == torch.bfloat16
    groups = x.double().reshape(32, -1)
    mean, variance = groups.mean(1, keepdim=True), groups.var(1, keepdim=True, correction=0)
    expected = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    # Rounded to eight bits once, at the end; rounding the mean would be an error of 0.25.
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)
