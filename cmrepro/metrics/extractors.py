"""Extractors: frozen image networks with their preprocessing, as protocols.toml sets them."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmrepro.metrics.inception import InceptionV3, resize_tensorflow1
from cmrepro.metrics.weights import weights_file
from cmrepro.settings import Extractor as ExtractorSettings

DINOV2_CODE = "facebookresearch/dinov2"  # what torch-fidelity's extractor loads through torch.hub

# Features (B, D), logits (B, K), spatial features (B, S) of a batch; None what is not given.
Outputs = tuple[Tensor, Tensor | None, Tensor | None]


class Extractor(nn.Module):
    """A frozen network in eval mode with its preprocessing.

    Attributes:
        settings: What fixes its features.
        name: Name of the extractor.
        feature_dim: D, the number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ExtractorSettings, network: nn.Module) -> None:
        """Wrap a network from pixels to `Outputs`.

        Pixels are resized and scaled as the settings say, unless the network does so by itself.
        """
        super().__init__()
        self.settings = settings
        self.name = settings.name
        self.feature_dim = settings.feature_dim
        self.network = network
        self.register_buffer("mean", torch.tensor(settings.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).reshape(3, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def images_at_once(self) -> int:
        """Most images in a pass.

        On a CPU few large images stay in the cache: InceptionV3 took 13.1, 12.9, 12.0 images/s in
        batches of 4, 8, 32. EfficientNet-Lite0 was fastest with 64 on one and two cores.
        """
        small = self.settings.network == "efficientnet-lite0"
        return 8 if self.mean.device.type == "cpu" and not small else 64

    def forward(self, images: Tensor) -> Outputs:
        """Features, logits and spatial features.

        Args:
            images: uint8 (B, H, W, 3), RGB, 0-255.

        Returns:
            Float32; None what the settings give no number for.

        Raises:
            ValueError: If the network gives other numbers of values than its settings say.
        """
        settings = self.settings
        if isinstance(self.network, TorchScriptInception) and self.network.resizes:
            x = images.permute(0, 3, 1, 2).float()
        else:
            x = (resize(images, settings.resize, settings.image_size) - self.mean) / self.std
        outputs = self.network(x)
        for key, output in zip(("feature_dim", "num_logits", "spatial_dim"), outputs, strict=True):
            width = getattr(settings, key)
            got = 0 if output is None else output.shape[1]
            if width not in (0, got):
                raise ValueError(
                    f"extractor {self.name}: {key} is {width}, but {settings.network} with these "
                    f"weights gives {got}; correct its settings"
                )
        features, logits, spatial = outputs
        return (
            features,
            logits if settings.num_logits else None,
            spatial if settings.spatial_dim else None,
        )


def load_extractor(settings: ExtractorSettings, device: str | torch.device = "cpu") -> Extractor:
    """The extractor of these settings on a device; the same object when asked again.

    Raises:
        FileNotFoundError: If a package with weights is not installed.
        ValueError: If weights or code cannot be had, or are not what the settings say.
    """
    return _load_extractor(settings, str(torch.device(device)))


@functools.cache
def _load_extractor(settings: ExtractorSettings, device: str) -> Extractor:
    load = {
        "efficientnet-lite0": load_efficientnet_lite0,
        "inception-2015": load_inception,
        "inception-torchscript": load_torchscript_inception,
        "dinov2": load_dinov2,
    }[settings.network]
    return Extractor(settings, load(settings)).to(device)


def load_inception(settings: ExtractorSettings) -> InceptionV3:
    """InceptionV3 with the weights of torch-fidelity's file.

    Raises:
        ValueError: If the file cannot be had or holds another network.
    """
    path = weights_file(settings)
    weights = _state_dict(path)
    try:
        return InceptionV3(weights)
    except KeyError as error:
        raise ValueError(
            f"{path} holds no weight {error}; it must be torch-fidelity's or pytorch-fid's file"
        ) from error


class TorchScriptInception(nn.Module):
    """NVIDIA's InceptionV3 as clean-fid calls it.

    Attributes:
        resizes: Whether the network resizes and scales pixels by itself (clean-fid's mode
            legacy_tensorflow), or takes resized and scaled ones (mode clean).
    """

    def __init__(self, network: Any, resizes: bool) -> None:
        super().__init__()
        self.network = network
        self.resizes = resizes

    def forward(self, x: Tensor) -> Outputs:
        x = x.contiguous()
        if self.resizes:
            features = self.network(x, return_features=True)
        else:
            features = self.network.layers(x)
        return features.flatten(1), None, None


def load_torchscript_inception(settings: ExtractorSettings) -> TorchScriptInception:
    """NVIDIA's InceptionV3 from its TorchScript file.

    It is neither frozen nor optimized, so that it computes what it computes elsewhere.

    Raises:
        ValueError: If the file cannot be had, has no full checksum to be held against (loading it
            runs code that it holds), or is no TorchScript.
    """
    weights = settings.weights
    if not weights.checksum.startswith("sha256:"):
        raise ValueError(
            f"weights {weights.name}: checksum is '{weights.checksum}', must be 'sha256:' with "
            "64 digits, because loading TorchScript runs code of the file"
        )
    path = weights_file(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
            network = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{path} is no TorchScript file; correct its address") from error
    return TorchScriptInception(network, settings.resize == "tensorflow1-bilinear")


class FeaturesOnly(nn.Module):
    """A network that gives features and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Outputs:
        return self.network(x), None, None


def load_dinov2(settings: ExtractorSettings) -> FeaturesOnly:
    """DINOv2, whose class token is the feature: its authors' code with verified weights.

    torch-fidelity's extractor runs the same code with weights that are not verified. The code
    comes through torch.hub, which keeps it; the weights' name says which network it builds.

    Raises:
        ValueError: If weights or code cannot be had, or do not belong together.
    """
    path = weights_file(settings)
    # As torch-fidelity does: another implementation of attention would move the features.
    os.environ["XFORMERS_DISABLED"] = "1"
    name = settings.weights.name.replace("-", "_")
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="xFormers is ")
            network = torch.hub.load(DINOV2_CODE, name, pretrained=False, verbose=False)
    except (OSError, RuntimeError, ImportError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"cannot load {name} through torch.hub ({reason}); with github.com in reach run it "
            f"again, or put a clone of {DINOV2_CODE} at "
            f"{Path(torch.hub.get_dir()) / 'facebookresearch_dinov2_main'}"
        ) from error
    try:
        network.load_state_dict(_state_dict(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {name}; correct it") from error
    return FeaturesOnly(network)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a file of torch.save.

    Raises:
        ValueError: If it is no such file, or holds anything that is not a tensor.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no file of PyTorch weights; correct its address") from error
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{path} holds other things than weights; give a state dict")
    return weights


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with pooled features and logits.

    Attributes:
        network: Of the efficientnet-lite-pytorch package.
    """

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Outputs:
        features = self.network.extract_features(x).mean(dim=(2, 3))  # (B, D)
        return features, self.network._fc(features), None


def load_efficientnet_lite0(settings: ExtractorSettings) -> EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet weights, folded.

    Raises:
        FileNotFoundError: If the package with the weights holds no weights file.
        ValueError: If that file has another checksum.
    """
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(_state_dict(weights_file(settings)))
    folded = fold_batch_norm(network.eval())
    return EfficientNetLite0(folded.to(memory_format=torch.channels_last))


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


def resize(images: Tensor, method: str, size: int) -> Tensor:
    """Images of another size.

    Args:
        images: uint8 (B, H, W, 3).
        method: As `ExtractorSettings.resize` says.
        size: Side length of the result in px.

    Returns:
        Float32 (B, 3, size, size), 0-255, not rounded, channels_last in memory.
    """
    if method == "tensorflow1-bilinear":
        return resize_tensorflow1(images.float(), size).permute(0, 3, 1, 2)
    if method == "pil-bicubic":
        return _resize_pil_bicubic(images, size).permute(0, 3, 1, 2)
    x = images.permute(0, 3, 1, 2).float()
    antialias = {"bilinear": True, "pytorch-bilinear": False}[method]
    return functional.interpolate(x, (size, size), mode="bilinear", antialias=antialias)


def _resize_pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Pillow's bicubic resize of each channel as float32, clipped to 0-255 (B, size, size, 3).

    References:
        Parmar, Zhang, Zhu (2022), "On aliased resizing and surprising subtleties in GAN
        evaluation", https://arxiv.org/abs/2104.11222; clean-fid's resize.py.
    """
    resized = np.empty((len(images), size, size, 3), np.float32)
    for image, result in zip(images.cpu().numpy().astype(np.float32), resized, strict=True):
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            plane = plane.resize((size, size), Image.Resampling.BICUBIC)
            result[..., channel] = np.asarray(plane)
    return torch.from_numpy(resized.clip(0, 255)).to(images.device)
