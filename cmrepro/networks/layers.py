"""Leaf layers: embedding of the noise level, normalisation, attention."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.networks import cpu


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first (official file cm/nn.py): (B,) -> (B, dim), float32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 for inputs and weights of any type."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return cpu.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def zero_init(module: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with all parameters zero, so that its block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class SelfAttention(nn.Module):
    """Multi-head self-attention over pixels with a residual connection.

    The 3C channels of `qkv` are ordered (query/key/value, head, head channel), as the released
    code's flash-attention layer reads them. The order (head, query/key/value, head channel) of
    earlier guided-diffusion code turns the released weights into noise.
    """

    def __init__(self, channels: int, num_head_channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.norm = norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.num_heads, c // self.num_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each (B, heads, H*W, C/heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj_out(out.transpose(-1, -2).reshape(b, c, h, w)).add_(x)
