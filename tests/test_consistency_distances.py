"""Distances: closed forms, invariances, and the package lpips as an independent oracle."""

import math
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrepro.consistency.distances import (
    LPIPS,
    Distance,
    EfficientNetDistance,
    l1,
    l2,
    pseudo_huber,
    unit_feature_distance,
)


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetDistance:
    return EfficientNetDistance()


@pytest.fixture(scope="module")
def random_lpips() -> LPIPS:
    """LPIPS with random VGG weights, and the learned weights of the package on top of them."""
    lpips = pytest.importorskip("lpips")
    original = lpips.LPIPS

    def random_vgg(**arguments: object) -> nn.Module:
        torch.manual_seed(0)
        module: nn.Module = original(pnet_rand=True, **arguments)
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "LPIPS", random_vgg)
        return LPIPS()


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 32, 32)])
def test_l1_and_l2_are_means_over_the_values_of_an_image(shape: tuple[int, ...]) -> None:
    x, scale = images(*shape).double(), torch.tensor([0.5, -2.0], dtype=torch.float64)
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
    # Not the sum over pixels: one difference of norm 2c counts once wherever its energy lies.
    spread = torch.full_like(x[:1], 2 * c / math.sqrt(x[0].numel()))
    assert pseudo_huber(x[:1], spread).item() / c == pytest.approx(math.sqrt(5) - 1, rel=1e-12)


@pytest.mark.parametrize("distance", [l1, l2, pseudo_huber])
def test_distances_are_symmetric_and_each_image_counts_alone(distance: Distance) -> None:
    x, y = images(3, 3, 8, 8), images(3, 3, 8, 8, seed=1)
    assert torch.equal(distance(x, y), distance(y, x))
    assert torch.equal(distance(x, x), torch.zeros(3))
    alone = torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(x, y), alone)


def test_unit_features_know_directions_only() -> None:
    x = [torch.randn(2, 5, 4, 4), torch.randn(2, 3, 2, 2)]
    y = [torch.randn_like(a) for a in x]
    assert torch.equal(unit_feature_distance(x, x), torch.zeros(2))
    scaled = [a * torch.rand(2, 1, *a.shape[2:]).add(0.1).mul(100) for a in x]
    expected = unit_feature_distance(x, y)
    # Float32; identical directions differ by an ulp of 1, squared.
    torch.testing.assert_close(unit_feature_distance(scaled, y), expected)
    assert (unit_feature_distance(scaled, x) < 1e-12).all()
    # |a - b|^2 of unit vectors at an angle is 2 - 2 cos: opposite 4, orthogonal 2, each layer.
    torch.testing.assert_close(unit_feature_distance(x, [-a for a in x]), torch.tensor([8.0, 8.0]))
    orthogonal = [torch.eye(4)[None, i].reshape(1, 4, 1, 1).expand(1, 4, 3, 3) for i in (0, 1)]
    torch.testing.assert_close(
        unit_feature_distance(orthogonal[:1], orthogonal[1:]), torch.tensor([2.0])
    )


def test_a_pixel_without_features_has_a_finite_gradient() -> None:
    """Where a ReLU network is silent the norm is 0 and its derivative a matter of convention."""
    x = torch.zeros(1, 5, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(unit_feature_distance([x], [x.detach() + 1]).sum(), x)
    assert gradient.isfinite().all()


def test_layers_must_correspond() -> None:
    with pytest.raises(ValueError, match="zip"):
        unit_feature_distance([torch.ones(1, 2, 2, 2)] * 2, [torch.ones(1, 2, 2, 2)])


def test_efficientnet_distance_is_a_distance(efficientnet: EfficientNetDistance) -> None:
    x, noise = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    assert torch.equal(efficientnet(x, x), torch.zeros(2))
    near, far = (efficientnet(x, (1 - a) * x + a * noise) for a in (0.1, 0.9))
    assert (near > 0).all() and (far > near).all()
    torch.testing.assert_close(efficientnet(x, noise), efficientnet(noise, x))
    taken = [tuple(feature.shape[1:]) for feature in efficientnet.features(x)]
    assert taken == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (80, 4, 4)]
    perceptual = unit_feature_distance(efficientnet.features(x), efficientnet.features(noise))
    torch.testing.assert_close(efficientnet(x, noise), perceptual + 0.05 * pseudo_huber(x, noise))


def test_efficientnet_gradient_is_finite_and_points_downhill(
    efficientnet: EfficientNetDistance,
) -> None:
    x, goal = images(2, 3, 32, 32).requires_grad_(), images(2, 3, 32, 32, seed=1)
    loss = efficientnet(x, goal).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).norm(dim=1).min() > 0
    step = 1e-3 / gradient.norm()
    with torch.no_grad():
        assert efficientnet(x - step * gradient, goal).sum() < loss
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)  # a constant image, against itself
    (gradient,) = torch.autograd.grad(efficientnet(flat, flat.detach()).sum(), flat)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["efficientnet", "random_lpips"])
def test_networks_of_a_distance_stay_as_they_are(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Neither batch statistics nor dropout nor training may reach them."""
    distance = request.getfixturevalue(name)
    assert distance.train() is distance
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.mark.parametrize(("size", "enlarged_to"), [(32, 224), (256, 256)])
def test_lpips_enlarges_small_images(random_lpips: LPIPS, size: int, enlarged_to: int) -> None:
    x, y = images(1, 3, size, size), images(1, 3, size, size, seed=1)
    metric: Callable[[Tensor, Tensor], Tensor] = random_lpips.metric
    enlarged = (
        F.interpolate(i, enlarged_to, mode="bilinear") if size != enlarged_to else i
        for i in (x, y)
    )
    with torch.no_grad():
        got, expected = random_lpips(x, y), metric(*enlarged)
    assert got.shape == (1,) and got > 0
    assert torch.equal(got, expected.flatten())


def test_lpips_without_its_weights_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(ValueError, match="no route to host") as error:
        LPIPS()
    message = str(error.value)
    assert "vgg16-397923af.pth" in message and str(tmp_path / "checkpoints") in message
    assert "\n" not in message


def test_lpips_without_its_package_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r"pip install 'cmrepro\[lpips\]'"):
        LPIPS()
