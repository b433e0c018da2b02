"""Extractors against the networks of other tools on the same weights, and their features."""

import pathlib
from typing import Any

import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from efficientnet_lite_pytorch import EfficientNet
from inception_files import random_inception_weights, save_stand_in, settings_with_file
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from cmrepro.files import sha256
from cmrepro.metrics.extractors import (
    BATCH_SIZE,
    FeatureExtractor,
    check_images,
    extract,
    load_extractor,
    resize,
    weights_file,
)
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.settings import Extractor

EMBEDDED = load_extractor_settings("efficientnet-lite0")


def pictures(count: int, width: int = 32, height: int = 32) -> np.ndarray:
    """Smooth random pictures, which differ in more than texture."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((width, height))) for x in coarse])


IMAGES = pictures(2, 48, 32)


def with_weights(settings: Extractor, **changes: Any) -> Extractor:
    return settings.replace(weights=settings.weights.replace(**changes))


def assert_equal_up_to_rounding(got: np.ndarray | None, expected: Tensor) -> None:
    """1e-4 of how much the images differ from each other: float32 rounding gives some 1e-6."""
    assert got is not None
    assert got.shape == expected.shape and got.dtype == np.float32
    spread = float((expected - expected.mean(dim=0)).norm())
    assert spread > 0.01 * float(expected.norm())
    assert float((torch.from_numpy(got) - expected).norm()) < 1e-4 * spread


# ---- EfficientNet-Lite0


@pytest.mark.parametrize("size", [32, 64, 96])
def test_equals_the_packages_network_after_pillows_resize(size: int) -> None:
    """Folding, padding, channels_last, resize and scaling against independent code.

    Pillow's bilinear filter has half-pixel centres and is antialiased when it shrinks (96 px).
    """
    images = pictures(4, size, size)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, size, size).astype(np.float32)
    resized = np.stack(
        [Image.fromarray(plane).resize((64, 64), Image.Resampling.BILINEAR) for plane in planes]
    ).reshape(4, 3, 64, 64)
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights_file(EMBEDDED), weights_only=True))
    x = torch.from_numpy((resized - 127) / 128)
    got = extract(images, load_extractor(EMBEDDED))
    with torch.inference_mode():
        assert_equal_up_to_rounding(got.logits, network(x))
        assert_equal_up_to_rounding(got.features, network.extract_features(x).mean(dim=(2, 3)))
    assert got.spatial is None


# ---- InceptionV3, on random weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as monkeypatch:
        torch.save(random_inception_weights(monkeypatch), file)
    return file


def test_inception_equals_torch_fidelitys(weights: pathlib.Path) -> None:
    """Spatial features: `mixed_6/conv` is Mixed_6d's 1x1 branch; ADM flattens (17, 17, 7)."""
    peer = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=weights,
    )
    convolved: list[Tensor] = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda *x: convolved.append(x[2]))
    with torch.inference_mode():
        features, logits = peer(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    spatial = torch.stack([convolved[0][:, c] for c in range(7)], dim=-1).reshape(2, 2023)
    extractor = load_extractor(settings_with_file("inception-adm", weights))
    got = extract(IMAGES, extractor, batch_size=2)
    assert_equal_up_to_rounding(got.features, features)
    assert_equal_up_to_rounding(got.logits, logits)
    assert_equal_up_to_rounding(got.spatial, spatial)
    first = extract(IMAGES[:1], extractor, batch_size=2)
    np.testing.assert_array_equal(first.features, got.features[:1])


def test_inception_equals_clean_fids_copy_of_pytorch_fid(
    weights: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode legacy_pytorch: half-pixel bilinear resize, then 2 x - 1 of pixels in [0, 1]."""
    monkeypatch.setattr(
        cleanfid.inception_pytorch,
        "load_state_dict_from_url",
        lambda *_, **__: torch.load(weights, weights_only=True),
    )
    peer = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
    resized = np.stack([build_resizer("legacy_pytorch")(image) for image in IMAGES])
    with torch.inference_mode():
        (features,) = peer(torch.from_numpy(resized).permute(0, 3, 1, 2) / 255)
    got = extract(IMAGES, load_extractor(settings_with_file("inception-pytorch-fid", weights)))
    assert_equal_up_to_rounding(got.features, features.flatten(1))
    assert got.logits is None and got.spatial is None


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    save_stand_in(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("inception-nvidia", "legacy_tensorflow"), ("inception-clean", "clean")],
)
def test_nvidias_file_gives_what_clean_fid_gets(
    name: str, mode: str, stand_in: pathlib.Path
) -> None:
    peer = InceptionV3W(
        str(stand_in.parent), download=False, resize_inside=name.endswith("nvidia")
    )
    resized = np.stack([build_resizer(mode)(image) for image in IMAGES])
    with torch.inference_mode():
        expected = peer(torch.from_numpy(resized).permute(0, 3, 1, 2).float())
    extractor = load_extractor(settings_with_file(name, stand_in))
    got = extract(IMAGES, extractor)
    assert_equal_up_to_rounding(got.features, expected)
    assert got.logits is None and got.spatial is None
    # TorchScript optimizes itself after its first runs: the numbers stay.
    for _ in range(3):
        np.testing.assert_array_equal(extract(IMAGES, extractor).features, got.features)


# ---- DINOv2


def small_dinov2(**_: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 1024, 56, stride=56), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_dinov2_equals_torch_fidelitys(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small network in the place of the downloads: the preprocessing and the calls."""
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    torch.save(small_dinov2().state_dict(), path)

    def hub_load(code: str, name: str, pretrained: bool = True, verbose: bool = True) -> nn.Module:
        assert (code, name) == ("facebookresearch/dinov2", "dinov2_vitl14")
        network = small_dinov2()
        if pretrained:
            network.load_state_dict(torch.load(path, weights_only=True))
        return network

    settings = settings_with_file("dinov2-vitl14", path)
    monkeypatch.setattr(torch.hub, "load", hub_load)
    peer = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    with torch.inference_mode():
        (expected,) = peer(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert_equal_up_to_rounding(extract(IMAGES, load_extractor(settings)).features, expected)


# ---- Resize, scale, batches


@pytest.mark.parametrize(("height", "width"), [(32, 48), (400, 320)])
def test_resizes_equal_those_of_other_tools(height: int, width: int) -> None:
    """Enlarging and shrinking a black and white pattern, at whose edges bicubic overshoots."""
    images = np.random.default_rng(0).choice(np.uint8([0, 255]), (2, height, width, 3))
    x = torch.from_numpy(images)
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        x.permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
    )
    assert torch.equal(resize(x, "tensorflow1-bilinear", 299), expected)
    # clean-fid clips 255 + 1.5e-5, which rounding gives, to 255; pytorch-fid does not.
    for method, mode, atol in (
        ("pil-bicubic", "clean", 0),
        ("pytorch-bilinear", "legacy_pytorch", 1e-4),
    ):
        peer = np.stack([build_resizer(mode)(image) for image in images])
        got = resize(x, method, 299).permute(0, 2, 3, 1)
        np.testing.assert_allclose(got, peer, rtol=0, atol=atol)


@pytest.mark.parametrize("images", [IMAGES / 255, IMAGES[..., 0], IMAGES[:0]])
def test_arrays_that_are_no_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be (a uint8 array|\(N, H, W, 3\))"):
        check_images(images)


class Pixels(nn.Module):
    """Features that are the three values of the first pixel, as the network gets them."""

    def forward(self, x: Tensor) -> Tensor:
        self.allows_tf32 = torch.backends.cudnn.allow_tf32
        return x[:, :, 0, 0]


def test_pixels_are_scaled_by_channel_and_convolutions_are_in_full_float32() -> None:
    """On recent GPUs PyTorch's default is TensorFloat32; it is set again afterwards."""
    settings = EMBEDDED.replace(feature_dim=3, num_logits=0, mean=(1, 2, 3), std=(2, 4, 8))
    network = Pixels()
    got = extract(np.full((1, 8, 8, 3), 19, np.uint8), FeatureExtractor(settings, network))
    np.testing.assert_array_equal(got.features, [[9, 4.25, 2]])
    assert not network.allows_tf32 and torch.backends.cudnn.allow_tf32


def test_features_depend_neither_on_other_images_nor_on_the_batch_size() -> None:
    images = np.concatenate([pictures(3)] * 24)
    assert len(images) % BATCH_SIZE and len(images) > BATCH_SIZE
    extractor = load_extractor(EMBEDDED)
    features = extract(images, extractor).features
    np.testing.assert_array_equal(features, np.concatenate([features[:3]] * 24))
    alone = extract(images[1:2], extractor).features
    np.testing.assert_array_equal(alone[0], features[1])
    one_by_one = extract(images[:3], extractor, batch_size=1).features
    # Convolutions choose their blocking by the batch: rounding only.
    assert_equal_up_to_rounding(one_by_one, torch.from_numpy(features[:3]))


# ---- Files of weights


def test_weights_are_used_after_their_checksum(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file put into the cache by hand and of an installed package."""
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "network.pth"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    inception, checksum = load_extractor_settings("inception-adm"), f"sha256-prefix:{digits[:8]}"
    settings = with_weights(inception, file="network.pth", checksum=checksum)
    assert weights_file(settings) == path
    path.write_bytes(b"abd")
    with pytest.raises(ValueError, match=r"network.pth has sha256 .*, expected ba7816bf"):
        weights_file(settings)
    with pytest.raises(ValueError, match=f"expected {digits}; reinstall the package efficientnet"):
        weights_file(with_weights(EMBEDDED, checksum=f"sha256:{digits}"))


def test_torchscript_runs_only_after_its_full_checksum(
    stand_in: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the file was loaded"))
    settings = settings_with_file("inception-nvidia", stand_in)
    for checksum, message in [
        (f"sha256:{'0' * 64}", f"expected {'0' * 64}"),
        (f"sha256-prefix:{sha256(stand_in)[:8]}", "'sha256:' with 64 digits"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_extractor(with_weights(settings, checksum=checksum))
