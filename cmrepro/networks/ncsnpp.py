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
ATTENTION_FACTOR = 2  # down-sampling factor of the level with attention: 16 of 32 pixels
INV_SQRT2 = 0.5**0.5

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class NCSNppConfig:
    """Shape of one NCSN++.

    Attributes:
        num_channels: Width in units of which `channel_mult` counts, even.
        channel_mult: Width of each level.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        dropout: Probability in [0, 1).
    """

    num_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    dropout: float = 0.0


def init(layer: Layer, scale: float = 1.0) -> Layer:
    """The same layer with the official initial values: uniform weights, biases of zero.

    Args:
        layer: Any convolution or linear layer with a bias.
        scale: Variance of the weights in units of 2 / (fan_in + fan_out).
    """
    nn.init.xavier_uniform_(layer.weight, gain=scale**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> GroupNorm32:
    """Normalisation with the official number of groups and variance offset."""
    return GroupNorm32(min(channels // 4, 32), channels, eps=1e-6)


def fir_kernel(gain: float = 1.0) -> Tensor:
    """Outer product of (1, 3, 3, 1) with itself, (1, 1, 4, 4), of sum `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return gain * torch.outer(taps, taps)[None, None] / 64


class FIRDownsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): low-pass filter, then every second pixel."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class FIRUpsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): zeros between the pixels, then the low-pass filter."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain=4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class PyramidDownsample(nn.Module):
    """One step of the input pyramid: low-pass filter, then a 3x3 convolution of stride 2."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(), persistent=False)
        self.conv = init(nn.Conv2d(in_channels, out_channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        x = F.conv2d(x, kernel, padding=2, groups=x.shape[1])  # (B, C, H + 1, W + 1)
        return self.conv(x)


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
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(in_channels)
        self.conv1 = init(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb = init(nn.Linear(emb_channels, out_channels))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = init(nn.Conv2d(out_channels, out_channels, 3, padding=1), scale=0)
        self.skip = (
            init(nn.Conv2d(in_channels, out_channels, 1))
            if in_channels != out_channels or resample is not None
            else nn.Identity()
        )

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
    """One resolution on the way down.

    `forward` takes the features, the pyramid image and the embedding, appends what the way up
    reads to `skips` and returns features and pyramid image for the next level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pyramid_channels: int,
        config: NCSNppConfig,
        attention: bool,
        last: bool,
    ) -> None:
        super().__init__()
        emb_channels = 4 * config.num_channels
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleList()
        for _ in range(config.num_res_blocks):
            self.blocks.append(ResBlock(in_channels, out_channels, emb_channels, config.dropout))
            self.attention.append(Attention(out_channels) if attention else nn.Identity())
            in_channels = out_channels
        self.last = last
        if not last:
            self.down = ResBlock(
                out_channels, out_channels, emb_channels, config.dropout, FIRDownsample()
            )
            self.pyramid = PyramidDownsample(pyramid_channels, out_channels)

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
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        config: NCSNppConfig,
        attention: bool,
        last: bool,
    ) -> None:
        super().__init__()
        emb_channels = 4 * config.num_channels
        self.blocks = nn.ModuleList()
        for channels in skip_channels:
            self.blocks.append(
                ResBlock(in_channels + channels, out_channels, emb_channels, config.dropout)
            )
            in_channels = out_channels
        self.attention = Attention(out_channels) if attention else nn.Identity()
        self.last = last
        if not last:
            self.up = ResBlock(
                out_channels, out_channels, emb_channels, config.dropout, FIRUpsample()
            )

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
        # Each block applies the activation to the embedding first: here, once.
        self.time_embed = nn.Sequential(
            init(nn.Linear(2 * width, emb_channels)),
            nn.SiLU(),
            init(nn.Linear(emb_channels, emb_channels)),
            nn.SiLU(),
        )
        self.conv_in = init(nn.Conv2d(3, width, 3, padding=1))

        channels, pyramid_channels, skips = width, 3, [width]
        self.down_levels = nn.ModuleList()
        levels = list(enumerate(config.channel_mult))
        for i, mult in levels:
            last, attention = i == len(levels) - 1, 2**i == ATTENTION_FACTOR
            level = Level(channels, mult * width, pyramid_channels, config, attention, last)
            self.down_levels.append(level)
            channels = pyramid_channels = mult * width
            skips += [channels] * (config.num_res_blocks + (not last))

        self.middle = nn.ModuleList(
            [
                ResBlock(channels, channels, emb_channels, config.dropout),
                Attention(channels),
                ResBlock(channels, channels, emb_channels, config.dropout),
            ]
        )

        self.up_levels = nn.ModuleList()
        for i, mult in reversed(levels):
            taken = [skips.pop() for _ in range(config.num_res_blocks + 1)]
            attention = 2**i == ATTENTION_FACTOR
            up = UpLevel(channels, mult * width, taken, config, attention, last=i == 0)
            self.up_levels.append(up)
            channels = mult * width

        self.norm_out = group_norm(channels)
        self.conv_out = init(nn.Conv2d(channels, 3, 3, padding=1), scale=0)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Network output F(x, c_noise).

        Args:
            x: (B, 3, H, W), the noisy image scaled by c_in; H and W divisible by the last level's
                down-sampling factor, 32 in the released models.
            c_noise: (B,), ln(t) / 4, which is the official `time_cond`.
            labels: None, the network has no classes.

        Returns:
            (B, 3, H, W) in the type of the weights, or of autocast inside it.

        Raises:
            ValueError: Labels are given.
        """
        if labels is not None:
            raise ValueError("got labels for a network of 0 classes; NCSN++ takes labels=None")
        dtype = self.conv_in.weight.dtype
        emb = self.time_embed(self.fourier(c_noise).to(dtype))
        pyramid = x.to(dtype)
        h = self.conv_in(pyramid)
        skips = [h]
        for level in self.down_levels:
            h, pyramid = level(h, pyramid, emb, skips)
        first, attention, second = self.middle
        h = second(attention(first(h, emb)), emb)
        for level in self.up_levels:
            h = level(h, emb, skips)
        return self.conv_out(F.silu(self.norm_out(h)))
