"""The NCSN++ (Song et al. 2021) as the released CIFAR-10 models configure it.

All six configurations of github.com/openai/consistency_models_cifar10 (commit d086e77,
jcm/models/ncsnpp.py) share it: BigGAN residual blocks, FIR resampling, Fourier features of the
noise level, a residual pyramid of the input, sums divided by sqrt(2), single-head attention at
half resolution. Blocks, attention layers and pyramid steps are registered in the order of the
official calls, so that counting each kind gives the official numbers (`checkpoints.flax`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.networks.layers import GroupNorm32

FOURIER_SCALE = 16.0
ATTENTION_LEVEL = 1  # at half the resolution: 16 of 32 pixels
INV_SQRT2 = 0.5**0.5

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Resample = nn.Module | None


@dataclass(frozen=True)
class NCSNppConfig:
    """Shape of one NCSN++."""

    num_channels: int  # width in units of which `channel_mult` counts, even
    channel_mult: tuple[int, ...]  # width of each level
    num_res_blocks: int  # residual blocks a level on the way down; one more on the way up
    dropout: float = 0.0  # probability in [0, 1)

    def width(self, level: int) -> int:
        """Channels of a level."""
        return self.channel_mult[level] * self.num_channels


def init(layer: Layer, scale: float = 1.0) -> Layer:
    """The same layer with zero biases, weights of variance 2 scale / (fan_in + fan_out)."""
    nn.init.xavier_uniform_(layer.weight, gain=scale**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> GroupNorm32:
    """Normalisation with the official number of groups and variance offset."""
    return GroupNorm32(min(channels // 4, 32), channels, eps=1e-6)


class LowPass(nn.Module):
    """Low-pass filter: outer product of (1, 3, 3, 1) with itself, (1, 1, 4, 4), of sum `gain`."""

    gain = 1.0
    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = self.gain * torch.outer(taps, taps)[None, None] / 64
        self.register_buffer("kernel", kernel, persistent=False)

    def kernels(self, x: Tensor) -> Tensor:
        """The filter for each channel of x, (C, 1, 4, 4)."""
        return self.kernel.expand(x.shape[1], -1, -1, -1)


class FIRDownsample(LowPass):
    """(B, C, H, W) -> (B, C, H/2, W/2): low-pass filter, then every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels(x), stride=2, padding=1, groups=x.shape[1])


class FIRUpsample(LowPass):
    """(B, C, H, W) -> (B, C, 2H, 2W): zeros between the pixels, then the low-pass filter."""

    gain = 4.0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernels(x), stride=2, padding=1, groups=x.shape[1])


class PyramidDownsample(LowPass):
    """One step of the input pyramid: low-pass filter, then a 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = init(nn.Conv2d(in_channels, out_channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        # filtered: (B, C, H + 1, W + 1)
        return self.conv(F.conv2d(x, self.kernels(x), padding=2, groups=x.shape[1]))


class FourierEmbedding(nn.Module):
    """(B,) -> (B, dim): sines and cosines at fixed random frequencies of deviation 16.

    The frequencies stay in float32 when the network is converted to half precision, whose
    rounding would move angles of hundreds by radians.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        frequencies = torch.empty(dim // 2)
        if not frequencies.is_meta:  # where random numbers would load sympy, for seconds
            frequencies.normal_(std=FOURIER_SCALE)
        self.register_buffer("frequencies", frequencies)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.frequencies
        super()._apply(fn, recurse)
        if torch.finfo(self.frequencies.dtype).bits < 32:
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, c_noise: Tensor) -> Tensor:
        # In the official order, since angles of hundreds round in the fifth digit.
        angles = c_noise.to(self.frequencies.dtype)[:, None] * self.frequencies * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ResBlock(nn.Module):
    """Residual block with the noise embedding; `resample` acts before its first convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, config: NCSNppConfig, resample: Resample = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(in_channels)
        self.conv1 = init(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb = init(nn.Linear(4 * config.num_channels, out_channels))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = init(nn.Conv2d(out_channels, out_channels, 3, padding=1), scale=0)
        same = in_channels == out_channels and resample is None
        self.skip = nn.Identity() if same else init(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h) + self.emb(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.skip(x) + h) * INV_SQRT2


class Attention(nn.Module):
    """Single-head self-attention over pixels with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = init(nn.Linear(channels, channels), scale=0.1)
        self.key = init(nn.Linear(channels, channels), scale=0.1)
        self.value = init(nn.Linear(channels, channels), scale=0.1)
        self.out = init(nn.Linear(channels, channels), scale=0)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (layer(pixels)[:, None] for layer in (self.query, self.key, self.value))
        out = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return (x + out.transpose(1, 2).reshape(x.shape)) * INV_SQRT2


class Level(nn.Module):
    """One resolution on the way down; appends features for the way up to `skips`."""

    def __init__(
        self, in_channels: int, pyramid_channels: int, level: int, config: NCSNppConfig
    ) -> None:
        super().__init__()
        channels = config.width(level)
        self.blocks, self.attention = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.num_res_blocks):
            self.blocks.append(ResBlock(in_channels, channels, config))
            has_attention = level == ATTENTION_LEVEL
            self.attention.append(Attention(channels) if has_attention else nn.Identity())
            in_channels = channels
        self.last = level == len(config.channel_mult) - 1
        if not self.last:
            self.down = ResBlock(channels, channels, config, FIRDownsample())
            self.pyramid = PyramidDownsample(pyramid_channels, channels)

    def forward(
        self, h: Tensor, pyramid: Tensor, emb: Tensor, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, emb))
            skips.append(h)
        if not self.last:
            h = pyramid = (self.pyramid(pyramid) + self.down(h, emb)) * INV_SQRT2
            skips.append(h)
        return h, pyramid


class UpLevel(nn.Module):
    """One resolution on the way up; takes the features of the way down off `skips`."""

    def __init__(
        self, in_channels: int, skip_channels: list[int], level: int, config: NCSNppConfig
    ) -> None:
        super().__init__()
        channels = config.width(level)
        self.blocks = nn.ModuleList()
        for skip in skip_channels:
            self.blocks.append(ResBlock(in_channels + skip, channels, config))
            in_channels = channels
        self.attention = Attention(channels) if level == ATTENTION_LEVEL else nn.Identity()
        self.last = level == 0
        if not self.last:
            self.up = ResBlock(channels, channels, config, FIRUpsample())

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        h = self.attention(h)
        return h if self.last else self.up(h, emb)


class NCSNpp(nn.Module):
    """The NCSN++."""

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.config = config
        width, emb_channels = config.num_channels, 4 * config.num_channels
        self.fourier = FourierEmbedding(2 * width)
        first, second = (init(nn.Linear(n, emb_channels)) for n in (2 * width, emb_channels))
        # Each block applies the activation to the embedding first: here, once.
        self.time_embed = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
        self.conv_in = init(nn.Conv2d(3, width, 3, padding=1))

        channels, pyramid_channels, skips = width, 3, [width]
        self.down_levels = nn.ModuleList()
        levels = range(len(config.channel_mult))
        for level in levels:
            self.down_levels.append(Level(channels, pyramid_channels, level, config))
            channels = pyramid_channels = config.width(level)
            skips += [channels] * (config.num_res_blocks + (level < levels[-1]))

        before, attention = ResBlock(channels, channels, config), Attention(channels)
        self.middle = nn.ModuleList([before, attention, ResBlock(channels, channels, config)])

        self.up_levels = nn.ModuleList()
        for level in reversed(levels):
            taken = [skips.pop() for _ in range(config.num_res_blocks + 1)]
            self.up_levels.append(UpLevel(channels, taken, level, config))
            channels = config.width(level)

        self.norm_out = group_norm(channels)
        self.conv_out = init(nn.Conv2d(channels, 3, 3, padding=1), scale=0)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """F(x, c_noise), (B, 3, H, W) in the type of the weights; c_noise is their `time_cond`."""
        if labels is not None:
            raise ValueError("got labels for a network of 0 classes; NCSN++ takes labels=None")
        pyramid = x.to(self.conv_in.weight.dtype)
        emb = self.time_embed(self.fourier(c_noise).to(pyramid.dtype))
        h = self.conv_in(pyramid)
        skips = [h]
        for level in self.down_levels:
            h, pyramid = level(h, pyramid, emb, skips)
        before, attention, after = self.middle
        h = after(attention(before(h, emb)), emb)
        for level in self.up_levels:
            h = level(h, emb, skips)
        return self.conv_out(F.silu(self.norm_out(h)))
