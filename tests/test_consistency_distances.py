"""Distances: closed forms, invariances, and the package lpips as an independent oracle."""

import math
from pathlib import Path
from types import SimpleNamespace

import golden
import golden_jax
import pytest
import requests
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg

from cmrepro.consistency import distances
from cmrepro.consistency.continuous import stop_gradient
from cmrepro.consistency.distances import (
    LPIPS,
    Distance,
    EfficientNetDistance,
    l1,
    l2,
    pseudo_huber,
    unit_feature_distance,
)
from cmrepro.consistency.losses import consistency_distillation_loss, consistency_training_loss
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import SOLVERS
from cmrepro.files import sha256


def images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetDistance:
    return EfficientNetDistance()


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files like the two downloads, of random weights that keep the features' size."""
    folder, generator = tmp_path_factory.mktemp("weights"), torch.Generator().manual_seed(0)
    vgg16 = {}
    for name, shape in vgg.make_layers(vgg.cfgs["D"]).state_dict().items():
        scale = (2 / shape[0].numel()) ** 0.5 if shape.ndim == 4 else 0.05
        vgg16[f"features.{name}"] = scale * torch.randn(shape.shape, generator=generator)
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for i, channels in enumerate(LPIPS.CHANNELS)
    }
    files = {"vgg16": folder / "vgg16.pth", "linear": folder / "linear.pth"}
    torch.save(vgg16 | {"classifier.0.weight": torch.zeros(3, 3)}, files["vgg16"])
    torch.save(linear, files["linear"])
    return files


@pytest.fixture(scope="module")
def random_lpips(weight_files: dict[str, Path]) -> LPIPS:
    return LPIPS(**weight_files)


@pytest.fixture
def package_lpips(weight_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The package's own network with the same weights."""
    layers = vgg.make_layers(vgg.cfgs["D"])
    stored = torch.load(weight_files["vgg16"], weights_only=True)
    stored.pop("classifier.0.weight")
    layers.load_state_dict({name[len("features.") :]: stored[name] for name in stored})
    lpips = pytest.importorskip("lpips")
    monkeypatch.setattr(
        lpips.pretrained_networks.tv, "vgg16", lambda **_: SimpleNamespace(features=layers)
    )
    metric: nn.Module = lpips.LPIPS(
        net="vgg", model_path=str(weight_files["linear"]), verbose=False
    )
    return metric.requires_grad_(False)


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


def test_the_network_of_a_distance_stays_as_it_is(efficientnet: EfficientNetDistance) -> None:
    """Neither batch statistics nor dropout nor training may reach it."""
    assert efficientnet.train() is efficientnet
    assert not any(module.training for module in efficientnet.modules())
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


def test_lpips_is_the_packages(
    package_lpips: nn.Module, weight_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pooling by the mean it is what piq's `replace_pooling` makes of the same network."""
    monkeypatch.setattr(LPIPS, "ENLARGED", 64)  # for speed; tested on its own below
    x, y = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    enlarged = [F.interpolate(i, 64, mode="bilinear") for i in (x, y)]
    got = {}
    for pooling in ("max", "average"):
        ours = LPIPS(pooling, **weight_files)
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        got[pooling] = ours(x, y)
        expected = package_lpips(*enlarged).flatten()
        # Float32 through 13 convolutions.
        torch.testing.assert_close(got[pooling], expected, rtol=1e-4, atol=0)
        for part in list(package_lpips.modules()):
            for name, layer in part.named_children():
                if isinstance(layer, nn.MaxPool2d):
                    setattr(part, name, nn.AvgPool2d(kernel_size=2, stride=2, padding=0))
    assert (got["average"] / got["max"] - 1).abs().min() > 0.01  # 100 times the tolerance


@pytest.mark.parametrize(("size", "enlarged_to"), [(32, 224), (255, 224), (256, 256)])
def test_lpips_enlarges_small_images(
    random_lpips: LPIPS, monkeypatch: pytest.MonkeyPatch, size: int, enlarged_to: int
) -> None:
    seen: list[Tensor] = []

    def features(x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [x[:, :1, ::64, ::64].expand(-1, c, -1, -1) for c in LPIPS.CHANNELS]

    monkeypatch.setattr(random_lpips, "features", features)
    x, y = images(1, 3, size, size), images(1, 3, size, size, seed=1)
    assert random_lpips(x, y).shape == (1,)
    for got, image in zip(seen, (x, y), strict=True):
        enlarged = F.interpolate(image, enlarged_to, mode="bilinear")
        assert torch.equal(got, enlarged if size != enlarged_to else image)


def test_any_module_is_a_distance() -> None:
    """One with learned parameters of its own, in both consistency losses."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.weight[:, None, None] * (x - y).square()).flatten(1).sum(1)

    x, z, distance = images(2, 3, 4, 4), images(2, 3, 4, 4, seed=1), Weighted()
    gain = torch.tensor(0.5, requires_grad=True)
    indices, times = torch.tensor([0, 2]), karras_times(5).float()

    def f(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return gain * x_t

    def teacher(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return x

    # A teacher that knows the image takes CT's step, which is exact: both losses are the same.
    ct = consistency_training_loss(f, f, x, z, indices, times, distance)
    cd = consistency_distillation_loss(
        f, f, teacher, x, z, indices, times, SOLVERS["euler"], distance
    )
    torch.testing.assert_close(cd, ct, rtol=1e-4, atol=0)  # float32 of numbers up to 80
    step = (times[indices] - times[indices + 1])[:, None, None, None] * z
    expected = 0.25 * torch.einsum("c,bchw->b", distance.weight, step.square())
    torch.testing.assert_close(ct, expected, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(ct.sum(), gain)
    assert gradient.isfinite() and gradient != 0


def test_the_enlargement_equals_the_official_one(
    random_lpips: LPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ncsnpp_modules/resize224: every 13th row, and two sums over the whole image."""
    stored = golden.arrays("ncsnpp_modules/modules.npz")
    x = golden_jax.channels_first(stored["resize224.x"])
    seen: list[Tensor] = []

    def features(x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [x[:, :1, ::64, ::64].expand(-1, c, -1, -1) for c in LPIPS.CHANNELS]

    monkeypatch.setattr(random_lpips, "features", features)
    random_lpips(x, -x)
    assert torch.equal(seen[0], -seen[1])
    rows = golden_jax.channels_first(stored["resize224.out_rows"])
    # Weights of multiples of 1/14 in float32, whose sums machines order otherwise: 1.2e-6 seen.
    assert golden.relative_error(seen[0][:, :, stored["resize224.rows"]], rows) < 5e-6
    image = seen[0].double()
    sums = torch.stack([image.sum(), image.square().sum()])
    torch.testing.assert_close(sums, stored["resize224.checksum"], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_stop_gradient_of_lpips_is_the_slope_of_its_gradient(random_lpips: LPIPS) -> None:
    """Which continuous-time CD and CT of the released models train with."""
    f, v = images(1, 3, 32, 32).requires_grad_(), images(1, 3, 32, 32, seed=1)
    (got,) = torch.autograd.grad(stop_gradient(random_lpips)(f, v).sum(), f)

    def slope(h: float) -> Tensor:
        x = (f.detach() + h * v).requires_grad_()
        return torch.autograd.grad(random_lpips(x, f.detach()).sum(), x)[0]

    h = 1e-3
    expected = (slope(h) - slope(-h)) / (2 * h)
    # ReLUs and maxima that switch within h: 0.007 observed, and in proportion more at larger h.
    assert golden.relative_error(got, expected) < 0.03


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, torchvision's beside it, and no way to download anything."""

    def offline(url: str, **_: object) -> None:
        raise ConnectionError(url)

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lpips"


def test_weights_of_lpips_that_cannot_be_had_say_where_they_belong(
    cache: Path, weight_files: dict[str, Path]
) -> None:
    for argument, name in (("vgg16", "vgg16-397923af.pth"), ("linear", "weights-vgg16-lpips.pth")):
        given = {key: path for key, path in weight_files.items() if key != argument}
        with pytest.raises(ValueError, match="cannot download https://") as error:
            LPIPS(**given)
        assert f"put the file at {cache / name} by hand" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["cache/lpips", "hub/checkpoints"])
def test_weights_that_are_there_are_used_after_their_checksum(
    cache: Path,
    tmp_path: Path,
    weight_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    """VGG16 from torchvision's cache too."""
    sums = {key: f"sha256:{sha256(path)}" for key, path in weight_files.items()}
    for path, key, name in (
        (tmp_path / folder, "vgg16", distances.VGG16_FILE),
        (cache, "linear", distances.LPIPS_FILE),
    ):
        path.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(weight_files[key].read_bytes())
    with pytest.raises(ValueError, match=f"expected {distances.VGG16_CHECKSUM[7:]}; delete it"):
        LPIPS()
    monkeypatch.setattr(distances, "VGG16_CHECKSUM", sums["vgg16"])
    monkeypatch.setattr(distances, "LPIPS_CHECKSUM", sums["linear"])
    got, expected = LPIPS().state_dict(), LPIPS(**weight_files).state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_the_packages_weights_have_the_checksum_of_the_download() -> None:
    """The one download whose content can be checked without a network."""
    lpips = pytest.importorskip("lpips")
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    assert f"sha256:{sha256(path)}" == distances.LPIPS_CHECKSUM
    learned = torch.load(path, map_location="cpu", weights_only=True)
    shapes = [tuple(learned[f"lin{i}.model.1.weight"].shape) for i in range(5)]
    assert shapes == [(1, channels, 1, 1) for channels in LPIPS.CHANNELS]


@pytest.mark.parametrize("wrong", ["swapped", "text", "empty", "tensor", "7", "1"])
def test_files_of_other_weights_are_refused(
    tmp_path: Path, weight_files: dict[str, Path], wrong: str
) -> None:
    path = tmp_path / "wrong.pth"
    if wrong in ("text", "empty"):
        path.write_text("text" if wrong == "text" else "")
    elif wrong == "tensor":
        torch.save(torch.zeros(3), path)
    elif wrong.isdigit():  # channels; one could be taken for all of a layer
        weight = torch.zeros(1, int(wrong), 1, 1)
        torch.save({f"lin{i}.model.1.weight": weight for i in range(5)}, path)
    else:
        path.write_bytes(weight_files["vgg16"].read_bytes())
    with pytest.raises(
        ValueError, match=r"wrong\.pth does not hold the weights of LPIPS"
    ) as error:
        LPIPS(vgg16=weight_files["vgg16"], linear=path)
    assert "\n" not in str(error.value)


def test_an_unknown_pooling_is_refused(weight_files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"unknown pooling 'avg': .*known: average, max"):
        LPIPS("avg", **weight_files)
