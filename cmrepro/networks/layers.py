"""Leaf layers shared by the networks: embedding, normalisation, resampling, attention."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first (official file cm/nn.py, `timestep_embedding`).

    Args:
        timesteps: (B,), any real number.
        dim: Even width of the embedding.

    Returns:
        (B, dim), float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()  # of a network in half precision
        narrow = self.num_channels < 5 * self.num_groups
        if (
            narrow
            and x[0, 0].numel() < 1024
            and x.numel() > 30_000
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
        ):
            return self._narrow(x.float(), weight, bias).to(x.dtype)
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)

    def _narrow(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The same from sums over whole images.

        For groups of few channels in channels_last and images of less than 1,024 pixels torch
        walks through each group by itself, on the CPU at up to ten times the cost.
        """
        centred = x - self._of_groups(x.mean((2, 3)))
        variance = self._of_groups(centred.square().mean((2, 3)))
        scale = weight[:, None, None] * (variance + self.eps).rsqrt()
        return torch.addcmul(bias[:, None, None], centred, scale)

    def _of_groups(self, means: Tensor) -> Tensor:
        """Means of channels (B, C) -> means of their groups, (B, C, 1, 1)."""
        groups = means.unflatten(1, (self.num_groups, -1))
        return groups.mean(2, keepdim=True).expand_as(groups).reshape(*means.shape, 1, 1)


def zero_init(module: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with all parameters zero, so that its block starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else reads: overwritten where no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def upsample_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(upsample(x))` of a 3x3 convolution with padding 1, at 4/9 of its multiplications.

    Of the nine neighbours of an up-sampled pixel at most four differ. So the sums of the weights
    that meet the same pixel, (4, 4) instead of (3, 3), act on `x` as the transposed convolution
    of stride 2.
    """
    if 4 * x.numel() < conv.weight.numel():  # the sums would cost more than they save
        return conv(upsample(x))
    taps = torch.eye(4, 3, device=x.device).flip(1)
    sums = (taps + taps.roll(1, 0)).to(conv.weight.dtype)  # [u, a]: weight a is part of sum u
    kernel = torch.einsum("ua,vb,oiab->iouv", sums, sums, conv.weight)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def downsample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2), 2x2 mean."""
    return F.avg_pool2d(x, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over pixels with a residual connection.

    The 3C channels of `qkv` are ordered (query/key/value, head, head channel), which is what the
    flash-attention layer of the released code reads. The order (head, query/key/value, head
    channel) of earlier guided-diffusion code turns the released weights into noise.
    """

    def __init__(self, channels: int, num_head_channels: int, norm: nn.Module) -> None:
        super().__init__()
        if channels % num_head_channels:
            raise ValueError(
                f"{channels} channels do not divide into heads of {num_head_channels}; "
                "choose num_head_channels among the divisors"
            )
        self.num_heads = channels // num_head_channels
        self.norm = norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.num_heads, c // self.num_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H*W, C/heads)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(-1, -2).reshape(b, c, h, w)
        return self.proj_out(out).add_(x)
