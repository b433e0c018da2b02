"""Extractors: frozen image networks with their preprocessing."""

import contextlib
import functools
import os
import sys
import warnings
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from cmrepro.files import cache_folder, download, one_line_errors, require_checksum
from cmrepro.settings import Extractor

DINOV2_CODE = "facebookresearch/dinov2"
BATCH_SIZE = 64  # images that a source hands over at a time, and the most in one forward pass
# Features (B, D), logits (B, K), spatial features (B, S), float32.
Outputs = tuple[Tensor, Tensor | None, Tensor | None]


class Features(NamedTuple):
    """Outputs for a set of images."""

    features: np.ndarray
    logits: np.ndarray | None = None
    spatial: np.ndarray | None = None


class FeatureExtractor(nn.Module):
    """A frozen network, which gives `Outputs` or features alone, with its preprocessing."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Extractor, network: nn.Module) -> None:
        super().__init__()
        self.settings, self.network = settings, network
        self.register_buffer("mean", torch.tensor(settings.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).reshape(3, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def images_at_once(self) -> int:
        """Most images in a forward pass."""
        # On a CPU few large images stay in the cache: InceptionV3 took 13.1, 12.9, 12.0 images/s
        # in batches of 4, 8, 32. EfficientNet-Lite0 was fastest with 64 on one and two cores.
        small = self.settings.network == "efficientnet-lite0"
        return 8 if self.mean.device.type == "cpu" and not small else BATCH_SIZE

    def forward(self, images: Tensor) -> Outputs:
        """Outputs for uint8 images (B, H, W, 3), without those whose size the settings omit."""
        settings, network = self.settings, self.network
        if isinstance(network, InceptionV3W) and network.resize_inside:
            x = images.permute(0, 3, 1, 2).float()
        else:
            x = resize(images, settings.resize, settings.image_size)
        if isinstance(network, InceptionV3W):  # scales by itself
            return network(x.contiguous()), None, None
        outputs = network((x - self.mean) / self.std)
        if not isinstance(outputs, tuple):
            return outputs, None, None
        features, logits, spatial = outputs
        logits = logits if settings.num_logits else None
        return features, logits, spatial if settings.spatial_dim else None


def check_images(images: np.ndarray) -> None:
    """Raise ValueError unless these are RGB images, uint8 (N, H, W, 3) with N >= 1."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images))
        fix = "convert floats in [-1, 1] by round((x + 1) * 127.5)"
        raise ValueError(f"images are {got}, must be a uint8 array; {fix}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        need = "(N, H, W, 3) with N >= 1; move the channels last and convert to RGB"
        raise ValueError(f"images have shape {images.shape}, must be {need}")


@torch.inference_mode()
def extract(
    images: np.ndarray, extractor: FeatureExtractor, batch_size: int = BATCH_SIZE
) -> Features:
    """Features of images.

    All passes have the same number of images, the last one with black images, whose output is
    dropped, so that the features of an image depend neither on N nor on the other images.
    """
    size = min(batch_size, extractor.images_at_once)
    parts = []
    # TensorFloat32, the default on recent GPUs, rounds to 11 bits; extractors are in float32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            batch = np.zeros((size, *images.shape[1:]), np.uint8)
            batch[: len(chunk)] = chunk
            outputs = extractor(torch.from_numpy(batch).to(extractor.mean.device))
            parts.append([x if x is None else x[: len(chunk)].cpu().numpy() for x in outputs])
    columns = zip(*parts, strict=True)
    joined: Any = [None if column[0] is None else np.concatenate(column) for column in columns]
    return Features(*joined)


@functools.cache
def load_extractor(settings: Extractor, device: str = "cpu") -> FeatureExtractor:
    """The extractor of these settings on a device; the same object at the next call."""
    path = weights_file(settings)
    if settings.network == "efficientnet-lite0":
        network: nn.Module = EfficientNetLite0(path)
    elif settings.network == "inception-2015":
        network = InceptionV3(path)
    elif settings.network == "inception-torchscript":
        if not (checksum := settings.weights.checksum).startswith("sha256:"):
            need = "'sha256:' with 64 digits, because loading TorchScript runs code of the file"
            raise ValueError(f"got checksum '{checksum}' for {path}, needed is {need}")
        inside = settings.resize == "tensorflow1-bilinear"  # clean-fid's mode legacy_tensorflow
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
            network = InceptionV3W(str(path.parent), download=False, resize_inside=inside)
    else:  # DINOv2, whose class token is the feature: its authors' code with verified weights
        # As torch-fidelity does: another implementation of attention would move the features.
        os.environ["XFORMERS_DISABLED"] = "1"
        name = settings.weights.name.replace("-", "_")
        try:
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="xFormers is ")
                network = torch.hub.load(DINOV2_CODE, name, pretrained=False, verbose=False)
        except (OSError, RuntimeError, ImportError) as error:
            fix = f"connect to github.com, or clone {DINOV2_CODE} into {torch.hub.get_dir()}"
            raise ValueError(f"cannot load {name} through torch.hub ({error}); {fix}") from error
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return FeatureExtractor(settings, network).to(device)


def weights_file(settings: Extractor) -> Path:
    """The verified file of an extractor's weights: in the cache, an absolute path or a package."""
    weights = settings.weights
    if weights.url is not None:
        path = cache_folder() / "weights" / weights.file
        return download(weights.url, path, weights.checksum, _read_weights)
    assert weights.package is not None
    path = Path(str(resources.files(weights.package))) / weights.file
    package = weights.package.replace("_", "-")
    require_checksum(path, weights.checksum, f"; reinstall the package {package}")
    return path


def _read_weights(path: Path) -> None:
    """Refuse a file that is no state dict of PyTorch."""
    with one_line_errors(path, "is no state dict", "download it again"):
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 of efficientnet-lite-pytorch: pooled features and logits.

    Each BatchNorm is folded into the convolution before it, and so is zero padding that is the
    same on all four sides: for an even side length, in all but those of stride 2.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        pairs = [(network.eval(), "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
        for block in network._blocks:
            pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
            if hasattr(block, "_expand_conv"):
                pairs.append((block, "_expand_conv", "_bn0"))
        for module, convolution, norm in pairs:
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            sides = getattr(fused.static_padding, "padding", (0, 0, 0, 0))
            if len(set(sides)) == 1:
                fused.padding, fused.static_padding = (sides[0], sides[0]), nn.Identity()
            setattr(module, convolution, fused)
            setattr(module, norm, nn.Identity())
        for module in network.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Outputs:
        features = self.network.extract_features(x).mean(dim=(2, 3))  # (B, D)
        return features, self.network._fc(features), None


class InceptionV3(nn.Module):
    """InceptionV3 of 2015-12-05, the network behind FID: torch-fidelity's, with fused batch norms.

    ADM's spatial features are the first 7 channels of `mixed_6/conv` of the TensorFlow graph: the
    1x1 convolution (with its ReLU) of Mixed_6d.

    Szegedy et al. (2016), https://arxiv.org/abs/1512.00567; the names of both sides:
    github.com/toshas/torch-fidelity, utils/util_convert_inception_weights.py; the spatial
    features: github.com/openai/guided-diffusion, evaluations/evaluator.py.
    """

    def __init__(self, path: Path) -> None:  # torch-fidelity's (pytorch-fid's) file of weights
        super().__init__()
        torch.load(path, map_location="cpu", weights_only=True)  # the next line runs any code
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        ).double()
        for module in network.modules():
            if isinstance(module, BasicConv2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        *layers, self.classes = network.float().children()
        self.layers = nn.Sequential(*layers)
        network.Mixed_6d.branch1x1.register_forward_hook(self._take_spatial)
        self.to(memory_format=torch.channels_last)

    def _take_spatial(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._spatial = output[:, :7]

    def forward(self, x: Tensor) -> Outputs:
        """Features (B, 2048), logits (B, 1008) without bias, spatial features (B, 2023)."""
        features = self.layers(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        spatial = self._spatial.permute(0, 2, 3, 1).flatten(1)  # (B, 17 x 17 x 7)
        return features, functional.linear(features, self.classes.weight), spatial


def resize(images: Tensor, method: str, size: int) -> Tensor:
    """Resize as `Extractor.resize` says: float32 (B, 3, size, size), 0-255, not rounded."""
    if method == "pil-bicubic":
        resizer = make_resizer("PIL", False, "bicubic", (size, size))
        resized = np.stack([resizer(image) for image in images.cpu().numpy()])
        return torch.from_numpy(resized).to(images.device).permute(0, 3, 1, 2)
    x = images.permute(0, 3, 1, 2).float()
    if method == "tensorflow1-bilinear":
        return interpolate_bilinear_2d_like_tensorflow1x(x, (size, size), align_corners=False)
    antialias = {"bilinear": True, "pytorch-bilinear": False}[method]
    return functional.interpolate(x, (size, size), mode="bilinear", antialias=antialias)
