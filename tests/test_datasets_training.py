"""Images for training: resized, in memory or read on demand."""

import io
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as torchvision

from cmrepro.data import ImageDataset, opening, training_images
from cmrepro.data.containers import centre_square

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)


def encoded(pixels: np.ndarray, mode: str = "RGB", kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write(folder: pathlib.Path, unreadable: int | None = None) -> pathlib.Path:
    """Eight images in two classes, one of them cut off."""
    for i, pixels in enumerate(PIXELS):
        path = folder / ("ab"[i // 4]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels)[: 60 if i == unreadable else None])
    return folder


@pytest.fixture(params=[True, False], ids=["in memory", "on demand"])
def in_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(opening, "MAX_BYTES_IN_MEMORY", PIXELS.nbytes if request.param else 0)
    return request.param


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of pairs along rows, then along columns, each rounded to levels as Pillow does."""
    height, width, _ = pixels.shape
    rows = np.floor(pixels.reshape(height, width // 2, 2, 3).mean(2) + 0.5)
    return np.floor(rows.reshape(height // 2, 2, width // 2, 3).mean(1) + 0.5)


@pytest.mark.parametrize(
    ("width", "height", "halvings"),
    [
        *((64, 64, 0), (85, 64, 0), (64, 87, 0)),  # only cropped, as LSUN's images
        *((128, 128, 1), (512, 512, 3)),  # only halved
        *((100, 100, 0), (96, 120, 0), (400, 300, 2), (250, 376, 1)),
        (40, 50, 0),  # enlarged
    ],
)
def test_central_squares_against_torchvision(width: int, height: int, halvings: int) -> None:
    """To 64 px. torchvision rounds sides down, which is the nearest in these cases."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    for _ in range(halvings):
        pixels = halved(pixels)
    resized = torchvision.resize(
        Image.fromarray(pixels.astype(np.uint8)), 64, torchvision.InterpolationMode.BICUBIC
    )
    left, top = (resized.width - 64) // 2, (resized.height - 64) // 2
    expected = np.asarray(resized)[top : top + 64, left : left + 64]
    np.testing.assert_array_equal(centre_square(image, 64), expected)


def test_images_are_taken_in_any_order_as_writable_copies(
    tmp_path: pathlib.Path, in_memory: bool
) -> None:
    """Torch warns of arrays that cannot be written; a change may not reach the data set."""
    images = training_images(write(tmp_path / "set"), 6)
    assert isinstance(images, ImageDataset) == in_memory
    assert (images.name, images.num_images, images.image_shape) == ("set", 8, (6, 6, 3))
    np.testing.assert_array_equal(images.labels, [0, 0, 0, 0, 1, 1, 1, 1])
    taken = images.take(np.array([7, 0, 7]))
    assert torch.from_numpy(taken).data_ptr() == taken.ctypes.data
    taken += 1
    np.testing.assert_array_equal(images.take([7, 0, 7]), PIXELS[[7, 0, 7]])


def test_images_smaller_than_the_network_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"a/0\.png has 6x6 pixels, the network takes 7x7"):
        training_images(write(tmp_path), 7)


def test_an_unreadable_image_stops_the_training(tmp_path: pathlib.Path, in_memory: bool) -> None:
    with pytest.raises(ValueError, match=r"^cannot decode b/7\.png \(.*; replace it"):
        training_images(write(tmp_path, unreadable=7), 6).take(range(8))
