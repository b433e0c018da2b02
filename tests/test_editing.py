"""Zero-shot editing: the paper's algorithm step by step, closed forms, and the command."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny, tiny_presets

import cmrepro
from cmrepro.consistency import editing
from cmrepro.consistency.schedules import karras_times

SIGMA_MIN, SIZE = 0.002, 8
TIMES = karras_times(6)[:-1].tolist()


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(x_t, t):
    """Some smooth function of images that mixes pixels and channels."""
    return (x_t.roll(1, 3) + x_t.flip(1) / 2).div(1 + t[:, None, None, None]).sin()


def householder(first):
    """Orthogonal matrix whose first column is along `first`."""
    matrix = torch.eye(len(first), dtype=torch.float64)
    matrix[:, 0] = torch.as_tensor(first, dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


def colors(x):
    return torch.einsum("bchw,cd->bdhw", x, householder(editing.LUMA))


def colors_back(x):
    return torch.einsum("bdhw,cd->bchw", x, householder(editing.LUMA))


def patches(x):
    """(B, 3, H, W) -> (B, 4, 3, H / 2, W / 2): coefficients of patches, their mean first."""
    parts = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    return torch.einsum("bm...,mk->bk...", parts, householder([1.0] * 4))


def patches_back(x):
    parts = torch.einsum("bk...,mk->bm...", x, householder([1.0] * 4)).unflatten(1, (2, 2))
    return parts.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


HALF = torch.zeros(SIZE, SIZE, dtype=torch.bool)
HALF[:, SIZE // 2 :] = True
FIRST_CHANNEL = torch.tensor([0.0, 1, 1])[:, None, None]
FIRST_OF_PATCH = torch.tensor([0.0, 1, 1, 1])[:, None, None, None]
TASKS = {  # projection; the paper's A, its inverse, Omega
    "inpainting": (editing.known_pixels(HALF), lambda x: x, lambda x: x, HALF.double()),
    "colorization": (editing.grey_part, colors, colors_back, FIRST_CHANNEL),
    "super-resolution": (editing.patch_means(2), patches, patches_back, FIRST_OF_PATCH),
}


@pytest.mark.parametrize("task", TASKS)
def test_editing_is_algorithm_4_with_its_linear_map_and_mask(task):
    projection, forward, inverse, omega = TASKS[task]
    y, z = draw(2, 3, SIZE, SIZE).clamp(-1, 1), draw(len(TIMES), 2, 3, SIZE, SIZE, seed=1)
    start = inverse(forward(y) * (1 - omega))
    x = None
    for t, noise in zip(TIMES, z, strict=True):
        x_t = start + t * noise if x is None else x + (t**2 - SIGMA_MIN**2) ** 0.5 * noise
        x = smooth(x_t, torch.full((2,), t, dtype=torch.float64)).clamp(-1, 1)
        x = inverse(forward(y) * (1 - omega) + forward(x) * omega)
    edited = editing.edit(smooth, y, projection, TIMES, z)
    torch.testing.assert_close(edited, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(projection(edited), projection(y), atol=1e-12, rtol=0)
    torch.testing.assert_close(projection(projection(y)), projection(y), atol=1e-12, rtol=0)


def test_inpainted_pixels_of_independent_gaussian_data_have_its_distribution():
    """f of N(0, c²) pixels is linear; the unknown ones become N(0, c² + sigma_min²)."""
    c, variance = 0.3, 0.3**2 + SIGMA_MIN**2

    def f(x_t, t):
        return x_t * (variance / (c**2 + t**2)).sqrt()[:, None, None, None]

    shape = (200, 3, SIZE, SIZE)
    y, z = c * draw(*shape), draw(len(TIMES), *shape, seed=1)
    x = editing.edit(f, y, editing.known_pixels(HALF), TIMES, z, clip_denoised=False)
    assert torch.equal(x[..., ~HALF], y[..., ~HALF])
    unknown = x[..., HALF]
    error = 4 * (2 / unknown.numel()) ** 0.5  # 4 standard errors of a relative variance
    assert unknown.var() == pytest.approx(variance, rel=error)
    correlation = (unknown * y[..., HALF]).mean() / variance
    assert abs(correlation) < 4 / unknown.numel() ** 0.5  # nothing leaks from the original


def test_interpolation_turns_noise_and_strokes_reach_the_first_evaluation():
    a, b = draw(1, 3, SIZE, SIZE), draw(1, 3, SIZE, SIZE, seed=1)
    b *= a.norm() / b.norm()
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    between = editing.spherical_interpolation(a, b, shares)
    torch.testing.assert_close(between[[0, -1]], torch.cat([a, b]))
    torch.testing.assert_close(between.flatten(1).norm(dim=1), a.norm().expand(5))
    seen = []

    def f(x_t, t):
        seen.append((x_t, t[0].item()))
        return 0 * x_t

    editing.follow_strokes(f, a, torch.stack([b, b]))
    torch.testing.assert_close(seen[0][0], a + 5.38 * b)
    assert [t for _, t in seen] == [5.38, 2.24]


@pytest.fixture
def tiny_network():
    with tiny_presets():
        yield


def test_api_and_command(tmp_path, run, tiny_network):
    path = save_tiny(tmp_path / "tiny-cd.safetensors")
    model = cmrepro.load(path)
    images = cmrepro.sample(model, 1, num_images=3)
    for task in ("denoising", "interpolation", "strokes"):
        edited = cmrepro.edit(model, images, task, num_scales=3)
        assert edited.shape == images.shape and edited.dtype == np.uint8
    assert np.array_equal(edited, cmrepro.edit(model, images, "strokes"))
    with pytest.raises(ValueError, match="sigma up to 80, a divisor of 8"):
        cmrepro.edit(model, images, "super-resolution", patch_size=3)
    with pytest.raises(ValueError, match=r"mask \(4, 4\); allowed is \(8, 8\)"):
        cmrepro.edit(model, images, "inpainting", missing=np.ones((4, 4), bool))
    conditional = cmrepro.load(save_tiny(tmp_path / "classes.safetensors", "classes"))
    for task in ("colorization", "interpolation"):
        assert cmrepro.edit(conditional, images, task, num_scales=3).shape == images.shape
    np.savez(tmp_path / "x.npz", images)
    out = tmp_path / "panel.png"
    arguments = ("--task", "inpainting", "--num-scales", 3, "--num-images", 2, "--out", out)
    code, stdout, err = run("edit", path, tmp_path / "x.npz", *arguments)
    assert (code, stdout) == (0, f"wrote {out}\n"), err
    panel = np.asarray(Image.open(out))
    assert panel.shape == (3 * 68 - 4, 2 * 68 - 4, 4)
    assert np.array_equal(panel[:16, :64], panel[136:152, :64])  # known pixels are kept
    assert not np.array_equal(panel[24:40, 24:40], panel[160:176, 24:40])
