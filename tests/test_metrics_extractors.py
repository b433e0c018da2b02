"""Extractors other than InceptionV3's own module, and the files of their weights."""

import pathlib
import socket
import urllib.error
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from efficientnet_lite_pytorch import EfficientNet
from inception_files import save_stand_in, settings_with_file
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from cmrepro.files import RECORDED, sha256
from cmrepro.metrics.extractors import (
    Extractor,
    FeaturesOnly,
    fold_batch_norm,
    load_extractor,
    resize,
)
from cmrepro.metrics.features import extract
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.metrics.weights import weights_file
from cmrepro.settings import Extractor as ExtractorSettings

EMBEDDED = load_extractor_settings("efficientnet-lite0")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)


def with_weights(settings: ExtractorSettings, **changes: Any) -> ExtractorSettings:
    return settings.replace(weights=settings.weights.replace(**changes))


# ---- EfficientNet-Lite0


@pytest.mark.parametrize("size", [32, 64, 96])
def test_equals_the_packages_network_after_pillows_resize(size: int) -> None:
    """Folding, padding, channels_last, resize and scaling against independent code.

    Pillow's bilinear filter has half-pixel centres and is antialiased when it shrinks (96 px).
    """
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, size, size).astype(np.float32)
    resized = np.stack(
        [Image.fromarray(plane).resize((64, 64), Image.Resampling.BILINEAR) for plane in planes]
    ).reshape(4, 3, 64, 64)
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights_file(EMBEDDED), weights_only=True))
    x = torch.from_numpy((resized - 127) / 128)
    with torch.inference_mode():
        logits = network(x).numpy()
        features = network.extract_features(x).mean(dim=(2, 3)).numpy()
    got = extract(images, load_extractor(EMBEDDED))
    assert got.logits is not None and got.spatial is None
    # 1e-4: float32 through 50 layers, summed in another order; 3e-6 is usual.
    assert np.linalg.norm(got.features - features) < 1e-4 * np.linalg.norm(features)
    assert np.linalg.norm(got.logits - logits) < 1e-4 * np.linalg.norm(logits)
    assert got.features.shape == (4, EMBEDDED.feature_dim)
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


# ---- All extractors


def test_an_extractor_is_frozen_and_kept() -> None:
    extractor = load_extractor(EMBEDDED)
    assert load_extractor(EMBEDDED, torch.device("cpu")) is extractor
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


class Pixels(nn.Module):
    """Features that are the three values of the first pixel, as the network gets them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.allows_tf32 = torch.backends.cudnn.allow_tf32
        return x[:, :, 0, 0]


def test_pixels_are_scaled_by_channel() -> None:
    settings = EMBEDDED.replace(
        feature_dim=3, num_logits=0, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)
    )
    images = np.full((1, 8, 8, 3), 19, np.uint8)
    got = extract(images, Extractor(settings, FeaturesOnly(Pixels())))
    np.testing.assert_array_equal(got.features, [[9, 4.25, 2]])


def test_convolutions_are_in_full_float32_on_gpus_too() -> None:
    """PyTorch's default there is TensorFloat32; what the user has set comes back afterwards."""
    network = Pixels()
    settings = EMBEDDED.replace(feature_dim=3, num_logits=0)
    before = torch.backends.cudnn.allow_tf32
    extract(IMAGES, Extractor(settings, FeaturesOnly(network)))
    assert not network.allows_tf32
    assert before and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("feature_dim", "feature_dim is 5, but efficientnet-lite0 with these weights gives 3"),
        ("num_logits", "num_logits is 5, but .* gives 0"),
        ("spatial_dim", "spatial_dim is 5, but .* gives 0"),
    ],
)
def test_a_network_that_is_not_what_its_settings_say_is_refused(key: str, message: str) -> None:
    right = EMBEDDED.replace(feature_dim=3, num_logits=0)
    wrong = right.replace(**{key: 5})  # type: ignore[arg-type]
    extract(IMAGES, Extractor(right, FeaturesOnly(Pixels())))
    with pytest.raises(ValueError, match=message) as error:
        extract(IMAGES, Extractor(wrong, FeaturesOnly(Pixels())))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(32, 40), (400, 320)])
def test_resizes_equal_clean_fids(shape: tuple[int, int]) -> None:
    """Its modes clean (Pillow's bicubic) and legacy_pytorch, enlarging and shrinking.

    Bicubic weights overshoot at the edges of a black and white pattern, so that clipping shows.
    """
    images = np.random.default_rng(0).choice(np.uint8([0, 255]), (2, *shape, 3))
    # clean-fid clips 255 + 1.5e-5, which rounding gives, to 255; pytorch-fid does not.
    for method, mode, atol in (
        ("pil-bicubic", "clean", 0),
        ("pytorch-bilinear", "legacy_pytorch", 1e-4),
    ):
        expected = np.stack([build_resizer(mode)(image) for image in images])
        got = resize(torch.from_numpy(images), method, 299).permute(0, 2, 3, 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# ---- NVIDIA's TorchScript network


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    save_stand_in(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("inception-nvidia", "legacy_tensorflow"), ("inception-clean", "clean")],
)
def test_equals_clean_fids_wrapper_on_the_same_file(
    name: str, mode: str, stand_in: pathlib.Path
) -> None:
    peer = InceptionV3W(
        str(stand_in.parent), download=False, resize_inside=name.endswith("nvidia")
    )
    resized = np.stack([build_resizer(mode)(image) for image in IMAGES])
    with torch.inference_mode():
        expected = peer(torch.from_numpy(resized).permute(0, 3, 1, 2).float()).numpy()
    extractor = load_extractor(settings_with_file(name, stand_in))
    got = extract(IMAGES, extractor)
    assert np.linalg.norm(expected - expected.mean(axis=0)) > 0.01 * np.linalg.norm(expected)
    # Another number of images in a pass: float32 rounding.
    np.testing.assert_allclose(got.features, expected, rtol=1e-5, atol=1e-5 * expected.max())
    assert got.logits is None and got.spatial is None
    # TorchScript optimizes itself after its first runs: the numbers stay.
    for _ in range(3):
        np.testing.assert_array_equal(extract(IMAGES[:2], extractor).features, got.features[:2])


def test_with_another_resize_the_network_does_not_resize(stand_in: pathlib.Path) -> None:
    """As `--explain` asks for it: only the resize differs between the two."""
    own, other = (
        load_extractor(settings_with_file("inception-nvidia", stand_in).replace(resize=method))
        for method in ("tensorflow1-bilinear", "pytorch-bilinear")
    )
    # The stand-in resizes as PyTorch does.
    np.testing.assert_allclose(
        extract(IMAGES, own).features, extract(IMAGES, other).features, rtol=1e-4, atol=1e-5
    )


def test_torchscript_runs_only_after_its_checksum(
    stand_in: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("the file was loaded"))
    settings = settings_with_file("inception-nvidia", stand_in)
    for checksum, message in [
        (f"sha256:{'0' * 64}", f"has sha256 {sha256(stand_in)}, expected {'0' * 64}"),
        (f"sha256-prefix:{sha256(stand_in)[:8]}", "must be 'sha256:' with 64 digits"),
        (RECORDED, "must be 'sha256:' with 64 digits"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load_extractor(with_weights(settings, checksum=checksum))
        assert "\n" not in str(error.value)


# ---- DINOv2


def small_dinov2(**_: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 1024, 56, stride=56), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def dinov2_file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(small_dinov2().state_dict(), path)
    return path


def test_dinov2_equals_torch_fidelitys(
    dinov2_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small network in the place of the downloads: the preprocessing and the calls."""

    def hub_load(code: str, name: str, pretrained: bool = True, verbose: bool = True) -> nn.Module:
        assert (code, name) == ("facebookresearch/dinov2", "dinov2_vitl14")
        network = small_dinov2()
        if pretrained:
            network.load_state_dict(torch.load(dinov2_file, weights_only=True))
        return network

    monkeypatch.setattr(torch.hub, "load", hub_load)
    peer = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    with torch.inference_mode():
        (expected,) = peer(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    got = extract(IMAGES, load_extractor(settings_with_file("dinov2-vitl14", dinov2_file)))
    # Float32 rounding of one convolution.
    np.testing.assert_allclose(got.features, expected, rtol=1e-5, atol=1e-5)


def test_dinov2_that_cannot_be_had_is_a_one_line_error(
    dinov2_file: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> nn.Module:
        raise urllib.error.URLError("no route to host")

    settings = settings_with_file("dinov2-vitl14", dinov2_file)
    monkeypatch.setattr(torch.hub, "load", unreachable)
    with pytest.raises(
        ValueError, match=r"cannot load dinov2_vitl14 .*no route.*a clone"
    ) as error:
        load_extractor(settings)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not hold the weights of dinov2_vitl14") as error:
        load_extractor(settings)
    assert "\n" not in str(error.value)


# ---- Files of weights


def test_a_file_put_into_the_cache_is_used_after_its_checksum(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "network.pth"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    settings = load_extractor_settings("inception-torch-fidelity")
    digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    for checksum in (f"sha256:{digits}", f"sha256-prefix:{digits[:8]}", RECORDED):
        found = weights_file(with_weights(settings, file="network.pth", checksum=checksum))
        assert found == path
    path.write_bytes(b"abd")
    for checksum in (f"sha256:{digits}", f"sha256-prefix:{digits[:8]}", RECORDED):
        with pytest.raises(ValueError, match=r"network.pth has sha256 .*, expected ba7816bf") as e:
            weights_file(with_weights(settings, file="network.pth", checksum=checksum))
        assert "\n" not in str(e.value)


def test_weights_that_cannot_be_reached_say_where_to_put_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as unused:  # a port on which nobody answers
        port = unused.getsockname()[1]
    settings = with_weights(
        load_extractor_settings("inception-torch-fidelity"), url=f"http://127.0.0.1:{port}/a"
    )
    final = tmp_path / "weights" / settings.weights.file
    with pytest.raises(ValueError, match=f"cannot download .*put the file at {final} ") as error:
        load_extractor(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"checksum": f"sha256:{'0' * 64}"},
            ValueError,
            f"has sha256 .*, expected {'0' * 64}; reinstall the package efficientnet-lite0-pyt",
        ),
        ({"file": "models/none.pth"}, FileNotFoundError, "no weights .*none.pth; reinstall"),
        ({"package": "no_such_package"}, FileNotFoundError, "reinstall the package no-such-pack"),
    ],
)
def test_other_weights_in_a_package_are_refused(
    changes: dict[str, str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        weights_file(with_weights(EMBEDDED, **changes))
    assert "\n" not in str(error.value)


def test_files_of_other_contents_are_refused(tmp_path: pathlib.Path) -> None:
    """The right checksum, but of a file that is something else."""
    garbage, others, objects = (tmp_path / name for name in ("garbage", "others", "objects"))
    garbage.write_bytes(b"no weights")
    torch.save({"conv.weight": torch.zeros(1)}, others)
    torch.save({"conv.weight": pathlib.PurePosixPath("a")}, objects)
    for path, name, message in [
        (garbage, "inception-torch-fidelity", "garbage is no file of PyTorch weights"),
        (objects, "inception-torch-fidelity", "objects is no file of PyTorch weights"),
        (others, "inception-torch-fidelity", "others holds no weight 'Conv2d_1a_3x3"),
        (garbage, "inception-nvidia", "garbage is no TorchScript file"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load_extractor(settings_with_file(name, path))
        assert "\n" not in str(error.value)
