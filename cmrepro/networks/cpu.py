"""Faster forms of three formulas on a CPU, equal to them up to the rounding of float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def silu(x: Tensor) -> Tensor:
    """`F.silu(x)` of a tensor without other readers: overwritten where no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def upsample_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(F.interpolate(x, scale_factor=2.0))` of a 3x3 convolution with padding 1.

    It takes 4/9 of the multiplications: of the nine neighbours of an up-sampled pixel at most four
    differ. The sums of the weights that meet the same pixel, (4, 4) instead of (3, 3), act on `x`
    as the transposed convolution of stride 2.
    """
    if 4 * x.numel() < conv.weight.numel():  # the sums would cost more than they save
        return conv(F.interpolate(x, scale_factor=2.0))
    taps = torch.eye(4, 3, device=x.device).flip(1)
    sums = (taps + taps.roll(1, 0)).to(conv.weight.dtype)  # [u, a]: weight a is part of sum u
    kernel = torch.einsum("ua,vb,oiab->iouv", sums, sums, conv.weight)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm(x, num_groups, weight, bias, eps)`, by sums over images for narrow groups."""
    # For groups of few channels and images below 1,024 pixels in channels_last torch walks through
    # each group by itself, on the CPU at up to ten times the cost.
    few = len(weight) < 5 * num_groups and x[0, 0].numel() < 1024 and x.numel() > 30_000
    if not few or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.group_norm(x, num_groups, weight, bias, eps)

    def of_groups(means: Tensor) -> Tensor:
        groups = means.unflatten(1, (num_groups, -1))  # (B, groups, channels of a group)
        return groups.mean(2, keepdim=True).expand_as(groups).reshape(*means.shape, 1, 1)

    centred = x - of_groups(x.mean((2, 3)))
    variance = of_groups(centred.square().mean((2, 3)))
    scale = weight[:, None, None] * (variance + eps).rsqrt()
    return torch.addcmul(bias[:, None, None], centred, scale)
