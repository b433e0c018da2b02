import re

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from cmrepro.files import array_sha256
from cmrepro.metrics.features import (
    Extractor,
    extract,
    fold_batch_norm,
    load_efficientnet_lite0,
    load_extractor,
)
from cmrepro.metrics.protocols import load_extractor_settings

NAME = "efficientnet-lite0"


def random_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: noise on a coarse grid, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size))) for x in coarse])


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor(NAME)


@pytest.fixture(scope="module")
def unfolded() -> EfficientNet:
    return load_efficientnet_lite0(load_extractor_settings(NAME).weights_sha256)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_equals_the_packages_network_after_pillows_resize(
    size: int, extractor: Extractor, unfolded: EfficientNet
) -> None:
    """Folding, padding, channels_last, resize and scaling against independent code.

    Pillow's bilinear filter has half-pixel centres and is antialiased when it shrinks (96 px).
    """
    images = random_images(4, size)
    resized = np.stack(
        [
            [
                np.asarray(
                    Image.fromarray(channel.astype(np.float32)).resize(
                        (64, 64), Image.Resampling.BILINEAR
                    )
                )
                for channel in image.transpose(2, 0, 1)
            ]
            for image in images
        ]
    )
    x = torch.from_numpy((resized - 127) / 128)
    with torch.inference_mode():
        logits = unfolded(x).numpy()
        features = unfolded.extract_features(x).mean(dim=(2, 3)).numpy()
    got = extract(images, extractor)
    # 1e-4: float32 through 50 layers, summed in another order; 3e-6 is usual.
    assert np.linalg.norm(got.features - features) < 1e-4 * np.linalg.norm(features)
    assert np.linalg.norm(got.logits - logits) < 1e-4 * np.linalg.norm(logits)
    assert got.features.shape == (4, extractor.feature_dim)
    assert got.features.dtype == got.logits.dtype == np.float32


def test_folding_follows_any_statistics_of_batch_norm() -> None:
    """With random statistics no BatchNorm is near the identity, so that a skipped one shows."""
    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network.extract_features(x)
        folded = fold_batch_norm(network)
        got = folded.extract_features(x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert float(expected.std()) > 0.1
    # As above: float32 rounding through 50 layers.
    assert float((got - expected).norm()) < 1e-4 * float(expected.norm())


def test_features_do_not_depend_on_the_number_of_images(extractor: Extractor) -> None:
    images = random_images(11)
    all_of_them = extract(images, extractor, batch_size=4)
    some = extract(images[:6], extractor, batch_size=4)
    np.testing.assert_array_equal(some.features, all_of_them.features[:6])
    np.testing.assert_array_equal(some.logits, all_of_them.logits[:6])


def test_features_do_not_depend_on_the_batch_size(extractor: Extractor) -> None:
    images = random_images(11)
    one, all_at_once = (extract(images, extractor, batch_size=size) for size in (1, 16))
    # Convolutions choose their blocking by the batch: rounding only.
    scale = np.abs(one.features).max()
    np.testing.assert_allclose(one.features, all_at_once.features, atol=1e-5 * scale)
    assert array_sha256(one.features) != array_sha256(one.features[:-1])


def test_the_extractor_is_frozen_and_kept(extractor: Extractor) -> None:
    assert load_extractor(NAME, torch.device("cpu")) is extractor
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "images are float32, must be a uint8 array"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\), must be \(N, H, W, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "N >= 1"),
        ([[1]], "images are list"),
    ],
)
def test_other_arrays_are_refused(images: np.ndarray, message: str, extractor: Extractor) -> None:
    with pytest.raises(ValueError) as error:
        extract(images, extractor)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_other_weights_and_names_are_refused(extractor: Extractor) -> None:
    with pytest.raises(ValueError, match=f"has SHA-256 .*, expected {'0' * 64}"):
        load_efficientnet_lite0("0" * 64)
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        load_extractor("efficientnet_lite0")
    with pytest.raises(ValueError, match="batch_size is 0, must be at least 1"):
        extract(random_images(1), extractor, batch_size=0)
