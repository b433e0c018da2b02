"""InceptionV3 against torch-fidelity's and clean-fid's networks on the same random weights."""

import pathlib

import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from inception_files import random_inception_weights, settings_with_file
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)

from cmrepro.metrics.extractors import load_extractor
from cmrepro.metrics.features import extract
from cmrepro.metrics.inception import resize_tensorflow1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as monkeypatch:
        torch.save(random_inception_weights(monkeypatch), file)
    return file


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth random pictures of 32 x 48 px, which differ in more than texture."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((48, 32))) for x in coarse])


def assert_equal_up_to_rounding(got: np.ndarray | None, expected: Tensor) -> None:
    """1e-4 of how much the images differ from each other: float32 rounding gives some 1e-6."""
    assert got is not None
    assert got.shape == expected.shape and got.dtype == np.float32
    spread = float((expected - expected.mean(dim=0)).norm())
    assert spread > 0.01 * float(expected.norm())
    assert float((torch.from_numpy(got) - expected).norm()) < 1e-4 * spread


def test_equals_torch_fidelitys_network(path: pathlib.Path, images: np.ndarray) -> None:
    """Spatial features: `mixed_6/conv` is Mixed_6d's 1x1 branch; ADM flattens (17, 17, 7)."""
    peer = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
    )
    convolved: list[Tensor] = []
    peer.Mixed_6d.branch1x1.register_forward_hook(lambda *x: convolved.append(x[2]))
    with torch.inference_mode():
        features, logits = peer(torch.from_numpy(images).permute(0, 3, 1, 2))
    spatial = torch.stack([convolved[0][:, c] for c in range(7)], dim=-1).reshape(2, 2023)
    got = extract(images, load_extractor(settings_with_file("inception-adm", path)), batch_size=2)
    assert_equal_up_to_rounding(got.features, features)
    assert_equal_up_to_rounding(got.logits, logits)
    assert_equal_up_to_rounding(got.spatial, spatial)


def test_equals_clean_fids_network_of_pytorch_fid(
    path: pathlib.Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode legacy_pytorch: half-pixel bilinear resize, then 2 x - 1 of pixels in [0, 1]."""
    monkeypatch.setattr(
        cleanfid.inception_pytorch,
        "load_state_dict_from_url",
        lambda *_, **__: torch.load(path, weights_only=True),
    )
    peer = cleanfid.inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()
    resized = np.stack([build_resizer("legacy_pytorch")(image) for image in images])
    with torch.inference_mode():
        (features,) = peer(torch.from_numpy(resized).permute(0, 3, 1, 2) / 255)
    got = extract(
        images, load_extractor(settings_with_file("inception-pytorch-fid", path)), batch_size=2
    )
    assert_equal_up_to_rounding(got.features, features.flatten(1))
    assert got.logits is None and got.spatial is None


def test_features_do_not_depend_on_the_batch(path: pathlib.Path, images: np.ndarray) -> None:
    extractor = load_extractor(settings_with_file("inception-torch-fidelity", path))
    both, first = (extract(x, extractor, batch_size=2) for x in (images, images[:1]))
    np.testing.assert_array_equal(first.features, both.features[:1])
    one_by_one = extract(images, extractor, batch_size=1)
    assert_equal_up_to_rounding(one_by_one.features, torch.from_numpy(both.features))


@pytest.mark.parametrize("shape", [(32, 32), (48, 64), (299, 299), (400, 512), (1, 2)])
def test_the_resize_is_torch_fidelitys_to_the_last_bit(shape: tuple[int, int]) -> None:
    """Enlarging, leaving and shrinking; its rows and columns may differ in number."""
    images = torch.randint(256, (2, *shape, 3), generator=torch.Generator().manual_seed(0))
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
    )
    assert torch.equal(resize_tensorflow1(images.float(), 299).permute(0, 3, 1, 2), expected)


def test_the_resize_follows_a_straight_line_from_the_first_pixel() -> None:
    """Pixel i of 8 lies at i / 2 of 4; beyond the last pixel the image goes on as it ends."""
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1)
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert torch.equal(resize_tensorflow1(ramp, 8)[0, :, :, 0], expected.expand(8, 8))
