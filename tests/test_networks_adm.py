"""The ADM U-Net: outputs and names of the official network, closed forms."""

import json

import golden
import pytest
import torch
from torch import Tensor

from cmrepro.networks.adm import C_NOISE_SCALE, PatchUNet, UNet
from cmrepro.networks.layers import SelfAttention, timestep_embedding
from cmrepro.networks.presets import DEMO, IMAGE_SIZES, build_network


@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_outputs_equal_the_official_network(case: str) -> None:
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
def test_full_size_networks_have_the_official_parameters(name: str) -> None:
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
    assert torch.equal(PatchUNet(DEMO)(x, torch.zeros(3)), x)
    pixels = x.reshape(3, 3, 4, 2, 4, 2)  # B, colour, then each axis as patch and pixel
    assert torch.equal(seen[0], pixels.permute(0, 1, 3, 5, 2, 4).reshape(3, 12, 4, 4))
