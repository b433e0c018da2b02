"""Random weights for networks, whose last layers are zero at the start."""

import torch
from torch import nn


def randomise(network: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """The same network in eval mode, each parameter with normal noise added."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()
