"""Images for training: resized, in memory or read on demand, unreadable ones replaced."""

import io
import itertools
import logging
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as torchvision

from cmrepro.data import ImageDataset, load_dataset, open_images, opening, training_images
from cmrepro.data.containers import centre_square
from cmrepro.training.data import BatchSource
from cmrepro.training.recipes import load_recipe

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)


def encoded(pixels: np.ndarray, mode: str = "RGB", kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write(folder: pathlib.Path, unreadable: tuple[int, ...] = ()) -> pathlib.Path:
    """Eight images in two classes, some of them cut off."""
    for i, pixels in enumerate(PIXELS):
        path = folder / ("ab"[i // 4]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels)[: 60 if i in unreadable else None])
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


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("CMYK", "jpeg"), ("RGBA", "png")])
def test_other_modes_become_rgb_for_training_only(
    tmp_path: pathlib.Path, mode: str, kind: str
) -> None:
    """ImageNet has grey and CMYK images; scoring takes images as they are."""
    data = encoded(PIXELS[0], mode, kind)
    (tmp_path / "a.png").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(training_images(tmp_path, 6).take([0])[0], expected)
    with pytest.raises(ValueError, match=f"a.png is {mode}, allowed is RGB"):
        load_dataset(tmp_path)


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


# Two in a row, over the end, and in both classes.
UNREADABLE = (2, 3, 7)
SHOWN = [{2: 4, 3: 4, 7: 0}.get(i, i) for i in range(8)]


def test_the_next_image_takes_the_place_of_an_unreadable_one(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, in_memory: bool
) -> None:
    images = training_images(write(tmp_path, UNREADABLE), 6, max_unreadable=3)
    taken = np.concatenate([images.take([i]) for i in range(8)])
    np.testing.assert_array_equal(taken, PIXELS[SHOWN])
    assert images.labels is not None
    assert images.labels.tolist() == [i // 4 for i in SHOWN]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    for name in ("a/2.png", "a/3.png", "b/7.png"):
        assert sum(f" {name} (" in record.getMessage() for record in caplog.records) == 1


def test_an_unreadable_first_image_is_replaced_too(tmp_path: pathlib.Path) -> None:
    images = training_images(write(tmp_path, (0,)), 6, 1)
    np.testing.assert_array_equal(images.take([0, 1]), PIXELS[[1, 1]])


def test_replacements_do_not_depend_on_the_order_of_reading(tmp_path: pathlib.Path) -> None:
    """Else processes, or a resumed run, would train on other images."""
    folder = write(tmp_path, UNREADABLE)
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 997):
        images: Any = open_images(folder, image_size=6, max_unreadable=3)
        for pair in (order[i : i + 2] for i in range(0, 8, 2)):
            np.testing.assert_array_equal(images.take(pair), PIXELS[[SHOWN[i] for i in pair]])
            assert images.labels[list(pair)].tolist() == [SHOWN[i] // 4 for i in pair]


@pytest.mark.parametrize("limit", [0, 2])
def test_too_many_unreadable_images_stop_the_training(
    tmp_path: pathlib.Path, in_memory: bool, limit: int
) -> None:
    message = rf"^cannot decode a/2.png \(.*; 3 such images, allowed are {limit} \(--max-unr"
    with pytest.raises(ValueError, match=message):
        training_images(write(tmp_path, UNREADABLE), 6, limit).take(range(8))


def test_a_batch_has_the_labels_of_its_images(tmp_path: pathlib.Path) -> None:
    """In the first batch already, before which no image is known to be unreadable."""
    images = open_images(write(tmp_path, UNREADABLE), image_size=6, max_unreadable=3)
    recipe = load_recipe("demo-cifar10-edm").replace(batch_size=8, horizontal_flip=False)
    batch = BatchSource(images, recipe, seed=0).batch(0)
    by_pixels = {PIXELS[i].tobytes(): i // 4 for i in range(8)}
    shown = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert batch.labels is not None
    assert batch.labels.tolist() == [by_pixels[image.tobytes()] for image in shown]
