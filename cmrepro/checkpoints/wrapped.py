"""A module of one's own in the place of a checkpoint's model."""

import torch
from torch import Tensor, nn

from cmrepro.records import CheckpointInfo, SampleProvenance


class WrappedModel(nn.Module):
    """Any f(x_t, t), which is sampled like the model of a checkpoint."""

    def __init__(
        self,
        module: nn.Module,
        image_size: int,
        num_classes: int,
        info: CheckpointInfo,
        provenance: SampleProvenance,
    ) -> None:
        super().__init__()
        self.module, self.image_size, self.num_classes = module, image_size, num_classes
        self.info, self.provenance, self.sigma_min = info, provenance, info.sigma_min

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of noisy ones and their times (B,), by the module."""
        x: Tensor = self.module(x_t, t) if labels is None else self.module(x_t, t, labels)
        if not isinstance(x, Tensor) or x.shape != x_t.shape or not torch.isfinite(x).all():
            found = f"{tuple(x.shape)} with NaN" if isinstance(x, Tensor) else type(x).__name__
            needed = f"a tensor {tuple(x_t.shape)} of finite values in [-1, 1]"
            raise ValueError(f"the module returned {found} at t = {t[0]:g}, needed is {needed}")
        return x.float()

    def __repr__(self) -> str:
        return f"WrappedModel({self.provenance.model}, {self.image_size} px)"
