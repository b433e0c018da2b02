"""Is a forward pass of our networks faster than diffusers' `UNet2DModel` with the same weights?

Narrow networks in the structure of adm-imagenet64 (classes, scale and shift) and adm-lsun256, on
the CPU in float32, each side in the memory format that its own loader gives. Measured on two busy
cores: 1.29 and 1.14 times as fast; most of the time are convolutions that both share. The class of
diffusers cannot hold the NCSN++ of CIFAR-10 (residual progressive input, no progressive output).
"""

import pytest
import torch
from diffusers import UNet2DModel
from timing import least_seconds

from cmrepro.checkpoints.diffusers_folder import unet_config
from cmrepro.checkpoints.diffusers_names import to_diffusers
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet

# name -> configuration, image size, batch
NETWORKS = {
    "imagenet64": (ADMConfig(64, (1, 2, 3, 4), 3, (2, 4, 8), 64, num_classes=1000), 64, 2),
    "lsun256": (
        ADMConfig(64, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 64, use_scale_shift_norm=False),
        128,
        1,
    ),
}
LEAST_RATIO = 0.9  # what was measured, less the noise of shared machines


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_against_diffusers(benchmark, monkeypatch, name):
    config, size, batch = NETWORKS[name]
    monkeypatch.setitem(presets.PRESETS, name, (UNet, config))
    monkeypatch.setitem(presets.IMAGE_SIZES, name, size)
    torch.manual_seed(0)
    ours = UNet(config).eval()
    for parameter in ours.parameters():  # the zero-initialised layers would hide the others
        torch.nn.init.normal_(parameter, std=0.02)
    theirs = UNet2DModel.from_config(unet_config(name)).eval()
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config))
    ours = ours.to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size)
    c_noise = torch.linspace(-1.5, 1.0, batch)
    labels = torch.arange(batch) if config.num_classes else None

    @torch.inference_mode()
    def our_forward():
        return ours(x, c_noise, labels)

    @torch.inference_mode()
    def their_forward():
        return theirs(x, 1000 * c_noise, class_labels=labels).sample

    # Two orders of float32 sums through some 60 layers.
    torch.testing.assert_close(our_forward(), their_forward(), rtol=1e-3, atol=1e-3)
    benchmark.pedantic(our_forward, rounds=1)
    our_s, their_s = least_seconds(our_forward, their_forward, rounds=3)
    benchmark.extra_info["times as fast as diffusers"] = their_s / our_s
    assert their_s > LEAST_RATIO * our_s
