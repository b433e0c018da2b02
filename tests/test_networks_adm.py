"""The ADM U-Net: outputs and names of the official network, size of the demo's, invariances."""

import copy
import json

import golden
import pytest
import torch
from random_weights import randomise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmrepro.networks.adm import C_NOISE_SCALE, PatchUNet, UNet
from cmrepro.networks.layers import GroupNorm32, SelfAttention, timestep_embedding
from cmrepro.networks.presets import DEMO, IMAGE_SIZES, PRESETS, build_network

MANIFESTS = {"adm-imagenet64": "adm_imagenet64", "adm-lsun256": "adm_lsun256"}


def inputs(size: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator)
    return x, torch.linspace(-1.5, 1.1, batch)


@pytest.fixture(scope="module")
def demo() -> nn.Module:
    return randomise(build_network("demo"))


@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_outputs_equal_the_official_network(case: str) -> None:
    network, stored = golden.adm(case), golden.arrays(f"adm/{case}/io.npz")
    names = [key.removeprefix("act.") for key in stored if key.startswith("act.")]
    activations: dict[nn.Module, Tensor] = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda module, _, output: activations.update({module: output})
        )
    with torch.no_grad():
        output = network(stored["x"], stored["timesteps"] / 1000, stored.get("y"))
    # Float32 through some twenty layers, summed in another order.
    for name in names:  # where an error begins, if there is one
        expected = stored[f"act.{name}"]
        got = activations[network.get_submodule(name)][: len(expected)]
        assert golden.relative_error(got, expected) < 1e-5, name
    assert golden.relative_error(output, stored["out"]) < 1e-5
    # 1000 ln(sigma) / 4 up to 1,100 in float32
    timesteps = C_NOISE_SCALE * stored["sigma"].log() / 4
    torch.testing.assert_close(timesteps, stored["timesteps"], rtol=1e-6, atol=0)
    embedding = timestep_embedding(stored["timesteps"], 32)
    # Cosines of angles up to 1,100, whose ulp in float32 is 1.2e-4.
    torch.testing.assert_close(embedding, stored["timestep_embedding"], rtol=0, atol=1.3e-4)


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_networks_have_the_official_parameters(name: str) -> None:
    manifest = json.loads(golden.path(f"manifests/{MANIFESTS[name]}.json").read_text("utf-8"))
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


def test_the_demo_network_is_cheap(demo: nn.Module) -> None:
    x, c_noise = inputs(IMAGE_SIZES["demo"], batch=2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        demo(x, c_noise)
    flops = counter.get_total_flops() / len(x)  # 2 x multiply-adds
    assert 0.1e9 < flops <= 0.4e9
    assert sum(p.numel() for p in demo.parameters()) < 4e6


def test_an_image_does_not_depend_on_its_batch(demo: nn.Module) -> None:
    x, c_noise = inputs(32, batch=5)
    with torch.no_grad():
        together, permuted = demo(x, c_noise), demo(x.flip(0), c_noise.flip(0)).flip(0)
        alone = torch.cat([demo(x[i : i + 1], c_noise[i : i + 1]) for i in range(5)])
    # Convolutions choose another blocking for another batch, so float32 sums differ in order.
    for got in (permuted, alone):
        for a, b in zip(got, together, strict=True):
            assert golden.relative_error(a, b) < 1e-5
    assert (together.diff(dim=0).abs().amax((1, 2, 3)) > 1e-2).all()


def test_memory_format_does_not_change_the_output(demo: nn.Module) -> None:
    x, c_noise = inputs(32)
    with torch.no_grad():
        expected = demo(x, c_noise)
        got = demo(x.contiguous(memory_format=torch.channels_last), c_noise)
    assert golden.relative_error(got, expected) < 1e-5  # another order of summation


def network_of(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights and inputs for it, both kinds of block among them."""
    if name == "demo":
        return randomise(build_network("demo")), inputs(32)
    labels = (torch.tensor([1, 2, 3]),) if name == "cond" else ()
    return randomise(UNet(golden.ADM[name])), (*inputs(16), *labels)


NETWORKS = pytest.mark.parametrize("name", ["cond", "uncond", "demo"])


# A mantissa of 8 or 11 bits, through some forty roundings that partly cancel.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)], ids=["bf16", "fp16"]
)
@NETWORKS
def test_half_precision_is_close_to_float32(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    network, (x, *rest) = network_of(name)
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


@NETWORKS
def test_the_graph_has_no_breaks(name: str) -> None:
    network, arguments = network_of(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")  # an error where it breaks
    with torch.no_grad():
        assert torch.equal(compiled(*arguments), network(*arguments))


def test_normalisation_is_computed_in_float32() -> None:
    x = (100 + torch.randn(1, 32, 8, 8)).bfloat16()
    with torch.no_grad():
        got = GroupNorm32(8, 32)(x)
    assert got.dtype == torch.bfloat16
    groups = x.double().reshape(8, -1)
    mean, variance = groups.mean(1, keepdim=True), groups.var(1, keepdim=True, correction=0)
    expected = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    # Rounded to eight bits once, at the end; rounding the mean would be an error of 0.25.
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("name", ["demo", "adm-imagenet64"])
def test_labels_are_given_exactly_when_there_are_classes(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name)
        x, c_noise, y = torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.zeros(1).long()
        classes = network.config.num_classes
        assert network(x, c_noise, y if classes else None).shape == x.shape
        with pytest.raises(ValueError, match=f"a network of {classes} classes") as error:
            network(x, c_noise, None if classes else y)
    assert ("got no labels" if classes else "got labels") in str(error.value)


def test_a_new_network_is_zero_and_trains_every_parameter() -> None:
    network, (x, c_noise), y = UNet(golden.ADM["cond"]), inputs(8), torch.tensor([1, 2, 3])
    assert torch.equal(network(x, c_noise, y), torch.zeros_like(x))
    randomise(network)(x, c_noise, y).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert unused == []


def test_patches_of_two_by_two_pixels_are_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(self: UNet, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(UNet, "forward", record)
    x, c_noise = inputs(8)
    assert torch.equal(PatchUNet(DEMO)(x, c_noise), x)
    pixels = x.reshape(3, 3, 4, 2, 4, 2)  # B, colour, then each axis as patch and pixel
    assert torch.equal(seen[0], pixels.permute(0, 1, 3, 5, 2, 4).reshape(3, 12, 4, 4))


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'adm-imagenet64'") as error:
        build_network("adm-imagenet")
    assert all(name in str(error.value) for name in PRESETS)


def test_heads_are_separate() -> None:
    """Attention of each head is that of a layer with this head's channels alone."""
    layer = SelfAttention(64, 32, GroupNorm32(32, 64))
    x = torch.randn(1, 64, 2, 3)
    with torch.no_grad():
        layer.proj_out.weight.copy_(torch.eye(64)[:, :, None, None])
        got = layer(x) - x
        qkv = layer.qkv(layer.norm(x)).flatten(2)[0].reshape(3, 2, 32, 6)
        for head in range(2):
            q, k, v = qkv[:, head]
            weights = (q.T @ k / 32**0.5).softmax(dim=1)  # query pixel, key pixel
            expected = (weights @ v.T).T
            torch.testing.assert_close(got[0, 32 * head : 32 * (head + 1)].flatten(1), expected)
