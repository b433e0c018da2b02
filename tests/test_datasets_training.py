"""Images for training: brought to the network's size, held or read, without unreadable ones."""

import io
import itertools
import logging
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import functional as torchvision

from cmrepro.data import (
    ImageDataset,
    ImageFiles,
    ReadableImages,
    UnreadableImagesError,
    load_dataset,
    open_images,
    opening,
    training_images,
)
from cmrepro.data.decoding import centre_square
from cmrepro.training.batches import BatchSource
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


def files(folder: pathlib.Path, image_size: int | None = 6) -> ImageFiles:
    opened = open_images(folder, image_size=image_size)
    assert isinstance(opened, ImageFiles)
    return opened


def random_image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(("width", "height"), [(256, 256), (341, 256), (256, 343), (257, 256)])
def test_an_image_of_the_right_side_is_only_cut(width: int, height: int) -> None:
    """LSUN's images are such; of an odd rest the smaller half is cut off at the left or top."""
    image = random_image(width, height)
    left, top = (width - 256) // 2, (height - 256) // 2
    expected = np.asarray(image)[top : top + 256, left : left + 256]
    np.testing.assert_array_equal(centre_square(image, 256), expected)


def halved(pixels: np.ndarray) -> np.ndarray:
    """Means of pairs along rows, then along columns, each rounded to levels as Pillow does."""
    height, width, _ = pixels.shape
    rows = np.floor(pixels.reshape(height, width // 2, 2, 3).mean(2) + 0.5)
    return np.floor(rows.reshape(height // 2, 2, width // 2, 3).mean(1) + 0.5)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_large_images_are_halved_by_averages(halvings: int) -> None:
    image = random_image(8 * 2**halvings, 8 * 2**halvings)
    expected = np.asarray(image)
    for _ in range(halvings):
        expected = halved(expected)
    np.testing.assert_array_equal(centre_square(image, 8), expected)


@pytest.mark.parametrize(
    ("width", "height", "halvings"),
    [(100, 100, 0), (96, 120, 0), (64, 80, 0), (40, 50, 0), (400, 300, 2), (250, 376, 1)],
)
def test_the_rest_is_bicubic(width: int, height: int, halvings: int) -> None:
    """To 64 px, against torchvision. It rounds sides down, which is the nearest in these cases."""
    image, pixels = random_image(width, height), np.asarray(random_image(width, height))
    for _ in range(halvings):
        pixels = halved(pixels)
    expected = torchvision.resize(
        Image.fromarray(pixels.astype(np.uint8)), 64, torchvision.InterpolationMode.BICUBIC
    )
    expected = torchvision.center_crop(expected, [64, 64])
    np.testing.assert_array_equal(centre_square(image, 64), expected)


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("CMYK", "jpeg"), ("RGBA", "png")])
def test_other_kinds_of_images_become_rgb_for_training_only(
    tmp_path: pathlib.Path, mode: str, kind: str
) -> None:
    """ImageNet has grey and CMYK images; scoring takes images as they are."""
    data = encoded(PIXELS[0], mode, kind)
    (tmp_path / "a.png").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(training_images(tmp_path, 6).take([0])[0], expected)
    with pytest.raises(ValueError, match=f"a.png is {mode}, allowed is RGB"):
        load_dataset(tmp_path)


def test_imagenets_file_names_say_their_class(tmp_path: pathlib.Path) -> None:
    names = ["n02_9.png", "n01440764_2.JPEG", "n01443537_10.JPEG", "n01440764_10.JPEG"]
    for name in names[1:]:
        (tmp_path / name).write_bytes(encoded(PIXELS[0]))
    labels = open_images(tmp_path).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 1]  # of n01440764_10, n01440764_2, n01443537_10
    (tmp_path / names[0]).write_bytes(encoded(PIXELS[0]))
    assert open_images(tmp_path).labels is None  # one image without a class


def test_small_data_sets_are_held_in_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "set")
    held = training_images(folder, 6)
    assert isinstance(held, ImageDataset)
    assert held.sha256() == ImageDataset("set", PIXELS).sha256()
    monkeypatch.setattr(opening, "HELD_BYTES", PIXELS.nbytes - 1)
    read = training_images(folder, 6)
    assert isinstance(read, ReadableImages)
    for images in (held, read):
        assert (images.name, images.num_images, images.image_shape) == ("set", 8, (6, 6, 3))
        np.testing.assert_array_equal(images.take([7, 0, 7]), PIXELS[[7, 0, 7]])
        np.testing.assert_array_equal(images.labels, [0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("held", [True, False])
def test_sample_sets_are_read_at_random_places(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(opening, "HELD_BYTES", PIXELS.nbytes - 1 + held)
    path = tmp_path / "set.npz"
    for arrays in ([PIXELS], [PIXELS, np.arange(8)]):
        np.savez(path, *arrays)
        images = training_images(path, 6)
        assert isinstance(images, ImageDataset) == held
        taken = images.take(np.array([5, 5, 0]))
        taken += 1  # a copy: the file stays as it is
        np.testing.assert_array_equal(taken - 1, PIXELS[[5, 5, 0]])
        assert images.sha256() == ImageDataset("set", PIXELS).sha256()


def test_compressed_sample_sets_are_trained_on_only_in_memory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "set.npz", PIXELS)
    np.testing.assert_array_equal(training_images(tmp_path / "set.npz", 6).take([3]), PIXELS[3:4])
    monkeypatch.setattr(opening, "HELD_BYTES", 0)
    with pytest.raises(ValueError, match=r"is compressed .* write it again with numpy"):
        training_images(tmp_path / "set.npz", 6).take([3])


def test_images_smaller_than_the_network_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"a/0\.png has 6x6 pixels, the network takes 7x7; give"):
        training_images(write(tmp_path), 7)


def test_all_unreadable_images_of_a_batch_are_named(tmp_path: pathlib.Path) -> None:
    source = files(write(tmp_path, unreadable=(1, 5)))
    with pytest.raises(UnreadableImagesError, match=r"b/5.png cannot be decoded \(") as one:
        source.take([4, 5])
    assert one.value.indices == (5,)
    with pytest.raises(UnreadableImagesError) as both:
        source.take([5, 0, 1, 5])
    assert both.value.indices == (1, 5)
    message = str(both.value)
    assert message.startswith("2 images cannot be decoded: a/1.png (")
    assert ", b/5.png (" in message and "\n" not in message


# Two in a row, over the end, and of either class.
UNREADABLE = (2, 3, 7)
INSTEAD = {2: 4, 3: 4, 7: 0}
SHOWN = [INSTEAD.get(i, i) for i in range(8)]


@pytest.mark.parametrize("held", [True, False])
def test_the_next_image_takes_the_place_of_an_unreadable_one(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    held: bool,
) -> None:
    monkeypatch.setattr(opening, "HELD_BYTES", PIXELS.nbytes if held else 0)
    images = training_images(write(tmp_path, UNREADABLE), 6, max_unreadable=3)
    taken = np.concatenate([images.take([i]) for i in range(8)])
    np.testing.assert_array_equal(taken, PIXELS[SHOWN])
    assert images.labels is not None
    assert images.labels.tolist() == [i // 4 for i in SHOWN]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    for name in ("a/2.png", "a/3.png", "b/7.png"):
        assert sum(f"left out {name}, " in record.getMessage() for record in caplog.records) == 1


def test_what_is_shown_does_not_depend_on_the_order_of_reading(tmp_path: pathlib.Path) -> None:
    """Else processes, or a resumed run, would train on other images."""
    folder = write(tmp_path, UNREADABLE)
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 997):
        images = ReadableImages(files(folder), 3)
        for pair in (order[i : i + 2] for i in range(0, 8, 2)):
            np.testing.assert_array_equal(images.take(pair), PIXELS[[SHOWN[i] for i in pair]])
            assert images.labels is not None
            assert images.labels[list(pair)].tolist() == [SHOWN[i] // 4 for i in pair]


@pytest.mark.parametrize("held", [True, False])
def test_too_many_unreadable_images_stop_the_training(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(opening, "HELD_BYTES", PIXELS.nbytes if held else 0)
    folder = write(tmp_path, UNREADABLE)
    for limit in (0, 2):
        with pytest.raises(ValueError) as caught:
            images = training_images(folder, 6, limit)
            for i in range(8):
                images.take([i])
        message = str(caught.value)
        assert "a/2.png (" in message or "a/2.png cannot be decoded (" in message
        assert f"; allowed are {limit} (--max-unreadable); replace or remove them" in message
        assert "\n" not in message


@pytest.mark.parametrize("limit", [-1, 8])
def test_a_limit_that_leaves_no_image_is_refused(tmp_path: pathlib.Path, limit: int) -> None:
    with pytest.raises(ValueError, match=f"got max_unreadable = {limit} for 8 images; allowed is"):
        training_images(write(tmp_path), 6, limit)


def test_an_unreadable_first_image_is_one_like_others(tmp_path: pathlib.Path) -> None:
    images = training_images(write(tmp_path, (0,)), 6, 1)
    np.testing.assert_array_equal(images.take([0, 1]), PIXELS[[1, 1]])


def test_taken_images_are_tensors_without_a_copy(tmp_path: pathlib.Path) -> None:
    """Torch warns of arrays that cannot be written."""
    np.savez(tmp_path / "set.npz", PIXELS)
    kinds: list[Any] = [ImageDataset("set", PIXELS), files(write(tmp_path / "a"))]
    kinds.append(open_images(tmp_path / "set.npz"))
    for source in kinds:
        taken: NDArray[np.uint8] = source.take([1, 2])
        assert taken.flags.writeable and type(taken) is np.ndarray
        assert torch.from_numpy(taken).data_ptr() == taken.ctypes.data


def test_a_batch_has_the_labels_of_the_images_in_it(tmp_path: pathlib.Path) -> None:
    """In the first batch already, before which nothing is known of the unreadable ones."""
    images = ReadableImages(files(write(tmp_path, UNREADABLE)), 3)
    recipe = load_recipe("demo-cifar10-edm").replace(batch_size=8, horizontal_flip=False)
    batch = BatchSource(images, recipe, seed=0).batch(0)
    by_pixels = {PIXELS[i].tobytes(): i // 4 for i in range(8)}
    shown = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    assert batch.labels is not None
    assert batch.labels.tolist() == [by_pixels[image.tobytes()] for image in shown]
