"""InceptionV3 of 2015-12-05, the network behind FID, and TensorFlow 1's resize.

The network is Google's, trained on ImageNet with 1,008 classes. It differs from the InceptionV3 of
torchvision: averages leave padding out, and the last block pools by maximum. Its weights are read
from torch-fidelity's and pytorch-fid's conversion, one file for both.

Layers follow the order of the TensorFlow graph; their names are those of the file. The graph calls
the eleven blocks `mixed`, `mixed_1`, … `mixed_10`, the file Mixed_5b, 5c, 5d, 6a, 6b, 6c, 6d, 6e,
7a, 7b, 7c. So `mixed_6/conv`, whose first 7 channels are ADM's spatial features, is the 1x1
convolution (with its ReLU) of Mixed_6d.

Each BatchNorm is folded into its convolution, and everything runs in channels_last: nine tenths of
the time then go into convolutions. Measured without effect and left out: merging the 1x1
convolutions that share an input, and oneDNN's fused convolution with ReLU.

References:
    Szegedy et al. (2016), "Rethinking the inception architecture for computer vision",
    https://arxiv.org/abs/1512.00567;
    the names of both sides: github.com/toshas/torch-fidelity,
    utils/util_convert_inception_weights.py;
    the spatial features: github.com/openai/guided-diffusion, evaluations/evaluator.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_NORM_EPS = 1e-3
# ADM's evaluator: so many channels at 17 x 17 positions are nearly as many values as it pools.
SPATIAL_CHANNELS = 7


class InceptionV3(nn.Module):
    """The network from scaled pixels to features.

    Attributes:
        before: Layers up to Mixed_6c.
        mixed_6: Mixed_6d.
        after: Layers from Mixed_6e to the pooled features.
        classes: Weight (1008, 2048) of the last layer, whose bias is left out.
    """

    classes: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Fold torch-fidelity's weights.

        Raises:
            KeyError: If one is missing.
        """
        super().__init__()
        layers = _Layers(weights)
        self.before = nn.Sequential(
            layers.convolution("Conv2d_1a_3x3", stride=2),
            layers.convolution("Conv2d_2a_3x3", padded=False),
            layers.convolution("Conv2d_2b_3x3"),
            nn.MaxPool2d(3, stride=2),
            layers.convolution("Conv2d_3b_1x1"),
            layers.convolution("Conv2d_4a_3x3", padded=False),
            nn.MaxPool2d(3, stride=2),
            layers.block_35("Mixed_5b"),
            layers.block_35("Mixed_5c"),
            layers.block_35("Mixed_5d"),
            layers.block_35_to_17("Mixed_6a"),
            layers.block_17("Mixed_6b"),
            layers.block_17("Mixed_6c"),
        )
        self.mixed_6 = layers.block_17("Mixed_6d")
        self.after = nn.Sequential(
            layers.block_17("Mixed_6e"),
            layers.block_17_to_8("Mixed_7a"),
            layers.block_8("Mixed_7b", average_pool()),
            layers.block_8("Mixed_7c", nn.MaxPool2d(3, stride=1, padding=1)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.register_buffer("classes", weights["fc.weight"])
        self.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits and spatial features.

        Args:
            x: (B, 3, 299, 299), about -1 to 1, channels_last in memory.

        Returns:
            Pooled features (B, 2048); logits without bias (B, 1008); spatial features (B, 2023),
            row by row with the channel last.
        """
        x = self.mixed_6(self.before(x))  # (B, 768, 17, 17)
        # The first branch, whose channels come first, is the 1x1 convolution.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        features = self.after(x)
        return features, functional.linear(features, self.classes), spatial


class Convolution(nn.Conv2d):
    """A convolution with the ReLU that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(super().forward(x))


class Branches(nn.ModuleList):
    """Branches over one input, whose channels are put one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def average_pool() -> nn.AvgPool2d:
    """Averages of 3 x 3 positions that leave padding out, as TensorFlow's do."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class _Layers:
    """Layers and blocks from the weights of torch-fidelity's file, by their names in it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def convolution(self, name: str, stride: int = 1, padded: bool = True) -> Convolution:
        """A convolution with its BatchNorm folded in; those of stride 2 have no padding."""
        mean, variance, gamma, beta = (
            self._weights[f"{name}.bn.{key}"].double()
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gamma / (variance + BATCH_NORM_EPS).sqrt()
        weight = self._weights[f"{name}.conv.weight"] * scale.reshape(-1, 1, 1, 1)
        out_channels, in_channels, height, width = weight.shape
        padding = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        layer = Convolution(in_channels, out_channels, (height, width), stride, padding)
        layer.weight = nn.Parameter(weight.float())
        layer.bias = nn.Parameter((beta - mean * scale).float())
        return layer

    def chain(self, names: Iterable[str], last_stride: int = 1) -> nn.Sequential:
        """One convolution after the other."""
        *first, last = names
        return nn.Sequential(
            *(self.convolution(name) for name in first), self.convolution(last, last_stride)
        )

    def block_35(self, name: str) -> Branches:
        """Of 35 x 35 positions."""
        return Branches(
            [
                self.convolution(f"{name}.branch1x1"),
                self.chain(f"{name}.branch5x5_{i}" for i in (1, 2)),
                self.chain(f"{name}.branch3x3dbl_{i}" for i in (1, 2, 3)),
                nn.Sequential(average_pool(), self.convolution(f"{name}.branch_pool")),
            ]
        )

    def block_35_to_17(self, name: str) -> Branches:
        """From 35 x 35 to 17 x 17 positions."""
        return Branches(
            [
                self.convolution(f"{name}.branch3x3", stride=2),
                self.chain((f"{name}.branch3x3dbl_{i}" for i in (1, 2, 3)), last_stride=2),
                nn.MaxPool2d(3, stride=2),
            ]
        )

    def block_17(self, name: str) -> Branches:
        """Of 17 x 17 positions."""
        return Branches(
            [
                self.convolution(f"{name}.branch1x1"),
                self.chain(f"{name}.branch7x7_{i}" for i in (1, 2, 3)),
                self.chain(f"{name}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)),
                nn.Sequential(average_pool(), self.convolution(f"{name}.branch_pool")),
            ]
        )

    def block_17_to_8(self, name: str) -> Branches:
        """From 17 x 17 to 8 x 8 positions."""
        return Branches(
            [
                self.chain((f"{name}.branch3x3_{i}" for i in (1, 2)), last_stride=2),
                self.chain((f"{name}.branch7x7x3_{i}" for i in (1, 2, 3, 4)), last_stride=2),
                nn.MaxPool2d(3, stride=2),
            ]
        )

    def block_8(self, name: str, pool: nn.Module) -> Branches:
        """Of 8 x 8 positions, with the pooling of its last branch."""

        def fork(branch: str) -> Branches:
            return Branches([self.convolution(f"{name}.{branch}{side}") for side in "ab"])

        return Branches(
            [
                self.convolution(f"{name}.branch1x1"),
                nn.Sequential(self.convolution(f"{name}.branch3x3_1"), fork("branch3x3_2")),
                nn.Sequential(
                    self.chain(f"{name}.branch3x3dbl_{i}" for i in (1, 2)),
                    fork("branch3x3dbl_3"),
                ),
                nn.Sequential(pool, self.convolution(f"{name}.branch_pool")),
            ]
        )


def resize_tensorflow1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `tf.image.resize_bilinear` with its defaults, to the last bit.

    Pixel i of the result lies at i x (old size / new size) of the image, so that the first pixels
    coincide and the last ones do not; nothing is smoothed when it shrinks.

    Args:
        images: Float (B, H, W, C).
        size: Side length of the result in px.

    Returns:
        (B, size, size, C).

    References:
        tensorflow/core/kernels/resize_bilinear_op.cc (align_corners and half_pixel_centers false).
    """
    for dim in (2, 1):  # along rows first: the order of TensorFlow's rounding
        old = images.shape[dim]
        # In float32, as TensorFlow computes it.
        scale = torch.tensor(old / size, dtype=torch.float32, device=images.device)
        position = torch.arange(size, dtype=torch.float32, device=images.device) * scale
        lower = position.long()
        upper = (lower + 1).clamp_max(old - 1)
        fraction = (position - lower).reshape(-1, *[1] * (3 - dim))
        start = images.index_select(dim, lower)
        images = images.index_select(dim, upper).sub_(start).mul_(fraction).add_(start)
    return images
