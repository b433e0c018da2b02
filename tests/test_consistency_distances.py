"""Distances: closed forms, invariances, and the package lpips as an independent oracle."""

import math
from pathlib import Path

import golden
import golden_jax
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.consistency import distances
from cmrepro.consistency.distances import (
    LPIPS,
    EfficientNetDistance,
    l1,
    l2,
    pseudo_huber,
    unit_feature_distance,
)
from cmrepro.files import sha256


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def random_weights() -> dict[str, Tensor]:
    """Weights of LPIPS that keep the features' size."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, value in LPIPS(pretrained=False).state_dict().items():
        if name.startswith("weight"):
            weights[name] = torch.rand(value.shape, generator=generator)
        else:
            scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.05
            weights[name] = scale * torch.randn(value.shape, generator=generator)
    return weights


def lpips_of(weights: dict[str, Tensor], pooling: str = "max") -> LPIPS:
    lpips = LPIPS(pooling, pretrained=False)
    lpips.load_state_dict(weights)
    return lpips


def test_l1_and_l2_are_means_over_the_values_of_an_image() -> None:
    x, scale = images(2, 3, 32, 32).double(), torch.tensor([0.5, -2.0], dtype=torch.float64)
    y = x + scale[:, None, None, None]
    torch.testing.assert_close(l1(x, y), scale.abs())
    torch.testing.assert_close(l2(x, y), scale**2)


def test_pseudo_huber_is_between_l1_like_and_l2_like() -> None:
    x = torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    y, c = x.clone(), 0.00054 * math.sqrt(3 * 8 * 8)
    y[0, 0, 0, 0], y[1, 0, 0, 0], y[2, 1, 2, 3] = 3 * c, 1e6 * c, 1e-3 * c
    got = pseudo_huber(x, y) / c
    assert got[0].item() == pytest.approx(math.sqrt(10) - 1, rel=1e-12)
    assert got[1].item() == pytest.approx(1e6 - 1, rel=1e-12)  # + 1 / (2 * 10^6)
    assert got[2].item() == pytest.approx(0.5e-6, rel=1e-6)  # and - u^4 / 8


def test_unit_features_know_directions_only() -> None:
    x = [torch.randn(2, 5, 4, 4), torch.randn(2, 3, 2, 2)]
    y = [torch.randn_like(a) for a in x]
    scaled = [a * torch.rand(2, 1, *a.shape[2:]).add(0.1).mul(100) for a in x]
    # Float32; identical directions differ by an ulp of 1, squared.
    torch.testing.assert_close(unit_feature_distance(scaled, y), unit_feature_distance(x, y))
    assert (unit_feature_distance(scaled, x) < 1e-12).all()
    # |a - b|^2 of unit vectors at an angle is 2 - 2 cos: opposite 4, orthogonal 2, each layer.
    torch.testing.assert_close(unit_feature_distance(x, [-a for a in x]), torch.tensor([8.0, 8.0]))
    a, b = (torch.eye(4)[None, i].reshape(1, 4, 1, 1).expand(1, 4, 3, 3) for i in (0, 1))
    torch.testing.assert_close(unit_feature_distance([a], [b]), torch.tensor([2.0]))


def test_efficientnet_distance_is_a_distance() -> None:
    efficientnet = EfficientNetDistance()
    x, noise = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    assert torch.equal(efficientnet(x, x), torch.zeros(2))
    near, far = (efficientnet(x, (1 - a) * x + a * noise) for a in (0.1, 0.9))
    assert (near > 0).all() and (far > near).all()
    torch.testing.assert_close(efficientnet(x, noise), efficientnet(noise, x))
    # The layers where the resolution halves, of images enlarged to 64 px.
    taken = [tuple(feature.shape[1:]) for feature in efficientnet.features(x)]
    assert taken == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (80, 4, 4)]
    # Training reaches neither batch statistics nor weights.
    assert not any(module.training for module in efficientnet.train().modules())
    assert not any(
        p.requires_grad for d in (efficientnet, LPIPS("max", False)) for p in d.parameters()
    )


def test_lpips_is_the_packages(random_weights: dict[str, Tensor]) -> None:
    """With pooling by the mean it is the result of piq's `replace_pooling` on this network."""
    package = pytest.importorskip("lpips").LPIPS(
        net="vgg", pnet_rand=True, lpips=True, pretrained=False, verbose=False
    )
    x, y = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    enlarged = [F.interpolate(i, 224, mode="bilinear") for i in (x, y)]
    layers = iter(value for name, value in random_weights.items() if name.startswith("layers"))
    linear = [value for name, value in random_weights.items() if name.startswith("weight")]
    with torch.no_grad():
        for parameter in package.net.parameters():
            parameter.copy_(next(layers))
        for i, weight in enumerate(linear):
            package.lins[i].model[1].weight.copy_(weight)
        got = {}
        for pooling in ("max", "average"):
            got[pooling] = lpips_of(random_weights, pooling)(x, y)
            # Float32 through 13 convolutions.
            expected = package.eval()(*enlarged).flatten()
            torch.testing.assert_close(got[pooling], expected, rtol=1e-4, atol=0)
            for part in list(package.modules()):
                for name, layer in part.named_children():
                    if isinstance(layer, nn.MaxPool2d):
                        setattr(part, name, nn.AvgPool2d(kernel_size=2, stride=2, padding=0))
    assert (got["average"] / got["max"] - 1).abs().min() > 0.01  # 100 times the tolerance


def test_the_enlargement_equals_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 13th row, and two sums over the whole image; none from 256 px on."""
    seen: list[Tensor] = []

    def features(self: LPIPS, x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [x[:, :1, ::64, ::64].expand(-1, c, -1, -1) for c in LPIPS.CHANNELS]

    monkeypatch.setattr(LPIPS, "features", features)
    stored = golden.arrays("ncsnpp_modules/modules.npz", "resize224.")
    x = golden_jax.channels_first(stored["x"])
    LPIPS(pretrained=False)(x, -x)
    rows = golden_jax.channels_first(stored["out_rows"])
    # Weights of multiples of 1/14 in float32, whose sums machines order otherwise: 1.2e-6 seen.
    assert golden.relative_error(seen[0][:, :, stored["rows"]], rows) < 5e-6
    image = seen[0].double()
    sums = torch.stack([image.sum(), image.square().sum()])
    torch.testing.assert_close(sums, stored["checksum"], rtol=1e-6, atol=0)
    LPIPS(pretrained=False)(large := images(1, 3, 256, 256), large)
    assert torch.equal(seen[2], large)


def test_downloaded_weights_are_used_after_their_checksum(
    tmp_path: Path, random_weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of VGG16 from torchvision's cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    vgg16, linear = {"classifier.0.weight": torch.zeros(3, 3)}, {}
    for name, value in random_weights.items():
        if name.startswith("layers"):
            vgg16[name.replace("layers", "features")] = value
        else:
            linear[f"lin{name[-1]}.model.1.weight"] = value
    files = {
        "VGG16_CHECKSUM": (tmp_path / "hub/checkpoints" / distances.VGG16_FILE, vgg16),
        "LPIPS_CHECKSUM": (tmp_path / "cache/lpips" / distances.LPIPS_FILE, linear),
    }
    for checksum, (path, weights) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, path)
        with pytest.raises(ValueError, match=f"expected {getattr(distances, checksum)[7:]}"):
            LPIPS()
        monkeypatch.setattr(distances, checksum, f"sha256:{sha256(path)}")
    got = LPIPS().state_dict()
    assert all(torch.equal(got[name], value) for name, value in random_weights.items())


def test_the_packages_weights_have_the_checksum_of_the_download() -> None:
    """The one download whose content can be checked without a network."""
    lpips = pytest.importorskip("lpips")
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    assert f"sha256:{sha256(path)}" == distances.LPIPS_CHECKSUM
