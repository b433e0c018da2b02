"""The ADM U-Net (Dhariwal and Nichol 2021) as the released PyTorch models configure it.

Parameter names equal those of the official file cm/unet.py, so that released state dicts load
without a name map. Residual blocks resample (`resblock_updown`), attention heads have a fixed
number of channels, and the order of query, key and value is that of flash-attention.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.networks.cpu import silu, upsample_conv
from cmrepro.networks.layers import GroupNorm32, SelfAttention, timestep_embedding, zero_init

Resample = Literal["up", "down"] | None
C_NOISE_SCALE = 1000.0  # cm/karras_diffusion.py: rescaled_t = 1000 * ln(t) / 4


@dataclass(frozen=True)
class ADMConfig:
    """Shape of one ADM U-Net."""

    num_channels: int  # width of the first level
    channel_mult: tuple[int, ...]  # width of each level in units of `num_channels`
    num_res_blocks: int  # residual blocks a level on the way down; one more on the way up
    attention_factors: tuple[int, ...]  # down-sampling factors at which attention follows a block
    num_head_channels: int  # of one attention head, a divisor of the widths with attention
    use_scale_shift_norm: bool = True  # by the noise level (ImageNet), which else is added (LSUN)
    num_classes: int = 0  # number of class labels; 0 for an unconditional network
    dropout: float = 0.0  # probability in [0, 1)
    in_channels: int = 3  # image channels, in and out
    min_group_channels: int = 1  # of a normalisation group (EDM's rule); 1: the official 32 groups

    def norm(self, channels: int) -> GroupNorm32:
        """Group normalisation of `channels` channels."""
        return GroupNorm32(min(32, channels // self.min_group_channels), channels)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3 convolution that keeps the image size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResBlock(nn.Module):
    """Residual block with the noise embedding; `resample` acts before its first convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, config: ADMConfig, resample: Resample = None
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm, self.resample = config.use_scale_shift_norm, resample
        emb_out = 2 * out_channels if self.use_scale_shift_norm else out_channels
        conv = conv3(in_channels, out_channels)
        self.in_layers = nn.Sequential(config.norm(in_channels), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.num_channels, emb_out))
        norm, conv = config.norm(out_channels), zero_init(conv3(out_channels, out_channels))
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(config.dropout), conv)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, _, conv = self.in_layers  # `silu` stands for the second, which has no parameters
        h = silu(norm(x))
        if self.resample == "up":  # conv(upsample(h)), upsample(x)
            h = upsample_conv(h, cast(nn.Conv2d, conv))
            x = F.interpolate(x, scale_factor=2.0)
        elif self.resample == "down":
            h, x = conv(F.avg_pool2d(h, 2)), F.avg_pool2d(x, 2)
        else:
            h = conv(h)
        emb_out = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm, _, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + emb_out)
        return conv(dropout(silu(h))).add_(self.skip_connection(x))


class Stage(nn.Sequential):
    """Blocks in a row; those that need the noise embedding receive it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            x = block(x, emb) if isinstance(block, ResBlock) else block(x)
        return x


class UNet(nn.Module):
    """The ADM U-Net."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.num_channels
        first, second = (nn.Linear(n, 4 * width) for n in (width, 4 * width))
        self.time_embed = nn.Sequential(first, nn.SiLU(), second)
        if config.num_classes:
            self.label_emb = nn.Embedding(config.num_classes, 4 * width)

        def attention(channels: int) -> SelfAttention:
            return SelfAttention(channels, config.num_head_channels, config.norm(channels))

        def blocks(in_channels: int, out_channels: int, factor: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(in_channels, out_channels, config)]
            if factor in config.attention_factors:
                layers.append(attention(out_channels))
            return layers

        channels = config.channel_mult[0] * width
        self.input_blocks = nn.ModuleList([Stage(conv3(config.in_channels, channels))])
        skips = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Stage(*blocks(channels, mult * width, 2**level)))
                channels = mult * width
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Stage(ResBlock(channels, channels, config, "down")))
                skips.append(channels)

        before, middle = ResBlock(channels, channels, config), attention(channels)
        self.middle_block = Stage(before, middle, ResBlock(channels, channels, config))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers = blocks(channels + skips.pop(), mult * width, 2**level)
                channels = mult * width
                if level and i == config.num_res_blocks:
                    layers.append(ResBlock(channels, channels, config, "up"))
                self.output_blocks.append(Stage(*layers))

        out = zero_init(conv3(channels, config.in_channels))
        self.out = nn.Sequential(config.norm(channels), nn.SiLU(), out)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """F(x, c_noise), (B, C, H, W) in the type of the weights."""
        if (labels is None) == bool(self.config.num_classes):
            got = f"{'no labels' if labels is None else 'labels'} for a network of"
            allowed = f"{self.config.num_classes} classes; pass labels exactly when it has classes"
            raise ValueError(f"got {got} {allowed}")
        x = x.to(next(self.parameters()).dtype)  # inputs come in float32
        embedding = timestep_embedding(C_NOISE_SCALE * c_noise, self.config.num_channels)
        emb = self.time_embed(embedding.to(x.dtype))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        norm, _, conv = self.out
        return conv(silu(norm(x)))


class PatchUNet(UNet):
    """The ADM U-Net on 2x2 patches: (B, 3, H, W) is read as (B, 12, H/2, W/2).

    The demo's network. Half the resolution makes a U-Net of the same width four times cheaper,
    so that a laptop CPU can sample it; nothing in the paper does this.
    """

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        patches = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(super().forward(patches, c_noise, labels), 2)
