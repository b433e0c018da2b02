"""Speed of a forward pass against diffusers' `UNet2DModel` of the same size.

Narrow networks in the structure of ours, on the CPU in float32, each side in the memory format
that its own loader gives. The ADM networks and the demo's have the same weights on both sides.
diffusers cannot hold the NCSN++ of CIFAR-10: its pyramid of the input brings each level the RGB
image through a 1x1 convolution and not the level before through a 3x3 one, it has no division by
sqrt(2) where both meet, and its embedding is twice as wide. So that one is compared with the
nearest that it can build from the blocks of Song et al. (FIR resampling, residual blocks that
resample, attention at half the resolution), of other weights and as many multiplications.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmrepro.checkpoints.diffusers import to_diffusers, unet_config
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig

IMAGENET, LSUN = (1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
full = pytest.mark.slow_bench
# Configuration, image size, batch, and the bound of our CPU time over theirs.
ADM = [
    pytest.param(
        ADMConfig(32, IMAGENET, 1, (2, 4, 8), 32, num_classes=10), 32, 2, 1.0, id="imagenet64"
    ),
    pytest.param(
        ADMConfig(32, LSUN, 1, (8, 16, 32), 32, use_scale_shift_norm=False), 64, 1, 1.05, id="lsun"
    ),
    # Of patches of 32-pixel images, in the official 32 groups, which diffusers has too.
    pytest.param(replace(presets.PATCH_UNET, min_group_channels=1), 16, 4, 1.05, id="demo"),
    pytest.param(
        ADMConfig(64, IMAGENET, 3, (2, 4, 8), 64, num_classes=1000),
        64,
        2,
        1.0,
        id="imagenet64-full",
        marks=full,
    ),
    pytest.param(
        ADMConfig(64, LSUN, 2, (8, 16, 32), 64, use_scale_shift_norm=False),
        128,
        1,
        1.05,
        id="lsun-full",
        marks=full,
    ),
]
NCSNPP = [
    pytest.param(NCSNppConfig(32, (2, 2, 2), 2), 1, 1.05, id="small"),
    pytest.param(NCSNppConfig(64, (2, 2, 2), 4), 4, 1.05, id="full", marks=full),
]


def randomised(network: nn.Module) -> nn.Module:
    """The same network with random weights: zero-initialised layers would hide the others."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return network.eval().to(memory_format=torch.channels_last)


def forwards(
    ours: nn.Module, theirs: UNet2DModel, x: Tensor, labels: Tensor | None = None
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    c_noise = torch.linspace(-1.5, 1.0, len(x))

    @torch.inference_mode()
    def our_forward() -> Tensor:
        return ours(x, c_noise, labels)

    @torch.inference_mode()
    def their_forward() -> Tensor:
        return theirs(x, 1000 * c_noise, class_labels=labels).sample

    return our_forward, their_forward


@pytest.mark.parametrize(("config", "size", "batch", "at_most"), ADM)
def test_adm(benchmark, gate, monkeypatch, request, config, size, batch, at_most):
    monkeypatch.setitem(presets.PRESETS, "narrow", (UNet, config))
    monkeypatch.setitem(presets.IMAGE_SIZES, "narrow", size)
    ours = randomised(UNet(config))
    theirs = UNet2DModel.from_config(unet_config("narrow")).eval()
    theirs.load_state_dict(to_diffusers(ours.state_dict(), config))
    labels = torch.arange(batch) if config.num_classes else None
    x = torch.randn(batch, config.in_channels, size, size)
    ours_run, theirs_run = forwards(ours, theirs, x, labels)
    benchmark.pedantic(ours_run, rounds=1, warmup_rounds=1)
    # Two orders of float32 sums through some 60 layers.
    torch.testing.assert_close(ours_run(), theirs_run(), rtol=1e-3, atol=1e-3)
    gate.ratio(
        f"{request.node.name} over diffusers", ours_run, theirs_run, at_most=at_most, pairs=5
    )


@pytest.mark.parametrize(("config", "batch", "at_most"), NCSNPP)
def test_ncsnpp(benchmark, gate, request, config, batch, at_most):
    ours = randomised(NCSNpp(config))
    channels = [mult * config.num_channels for mult in config.channel_mult]
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=channels,
        layers_per_block=config.num_res_blocks,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        attention_head_dim=None,
        norm_eps=1e-6,
        norm_num_groups=min(channels[0] // 4, 32),
    ).eval()
    x = torch.randn(batch, 3, 32, 32)
    ours_run, theirs_run = forwards(ours, theirs, x)
    flops, parameters = [], []
    for network, run in ((ours, ours_run), (theirs, theirs_run)):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
        parameters.append(sum(weights.numel() for weights in network.parameters()))
    # Theirs has the wider embedding, ours the wider pyramid; both are small beside the blocks.
    assert flops[0] == pytest.approx(flops[1], rel=0.05)
    assert parameters[0] == pytest.approx(parameters[1], rel=0.12)
    benchmark.pedantic(ours_run, rounds=1, warmup_rounds=1)
    gate.ratio(
        f"{request.node.name} over diffusers", ours_run, theirs_run, at_most=at_most, pairs=5
    )
