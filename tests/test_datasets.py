"""Data sets: batches, images by number, checksums, labels, images for training."""

import hashlib
import json
import multiprocessing
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_corpus_images import CLASSES, PIXELS, READ, archive, arrays, encoded, files, folder, row
from torchvision.transforms import functional as torchvision

from cmrepro.data import ImageDataset, images_sha256, load_dataset, open_images, opening
from cmrepro.data import training_images as training
from cmrepro.data.containers import centre_square

# No buffer of a file holds two images.
PADDED = {
    n: x for i in range(6) for n, x in (*files(start=i).items(), (f"{i}.txt", bytes(50_000)))
}
KINDS = {name: READ[name] for name in ("png", "lmdb", "npz", "npz, compressed")} | {
    "zip": row(archive, PADDED, compression=0)
}


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize("kind", [*KINDS, "array"])
def test_batches_are_parts_of_the_whole(
    kind: str, batch_size: int, tmp_path: pathlib.Path
) -> None:
    array = ImageDataset("set", PIXELS)
    source = array if kind == "array" else open_images(KINDS[kind](tmp_path / "set"))
    assert (source.name, source.num_images, source.image_shape) == ("set", 6, (8, 8, 3))
    for start, stop in [(0, None), (0, 2), (1, 5), (2, 2)]:
        batches = list(source.batches(batch_size, start, stop))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        np.testing.assert_array_equal(np.concatenate([*batches, PIXELS[:0]]), PIXELS[start:stop])
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in PIXELS[:3])
    assert images_sha256(source, 3) == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_taken_by_number_also_after_a_fork(kind: str, tmp_path: pathlib.Path) -> None:
    """Processes that share an archive's position in its file would read anything."""
    source = open_images(KINDS[kind](tmp_path / "set"))
    for indices in ([5], [3, 0, 3, 5], np.arange(6)):
        np.testing.assert_array_equal(source.take(indices), PIXELS[indices])
    receiving, sending = multiprocessing.get_context("fork").Pipe(duplex=False)

    def read() -> list[bytes]:
        return [source.take([i % 6]).tobytes() for i in range(200)]

    child = multiprocessing.get_context("fork").Process(target=lambda: sending.send(read()))
    child.start()
    expected = read()
    assert receiving.poll(30), "the child hangs"
    assert receiving.recv() == expected == [PIXELS[i % 6].tobytes() for i in range(200)]
    child.join()


def test_the_checksum_of_files_is_that_of_names_lengths_and_size(tmp_path: pathlib.Path) -> None:
    """Training states hold it: it may not change. The container does not matter."""
    digest = hashlib.sha256(b"None\n")
    for name in sorted(CLASSES):
        digest.update(f"{name}\0{len(CLASSES[name])}\n".encode())
    for path in (folder(tmp_path / "set", CLASSES), archive(tmp_path / "other.zip", CLASSES)):
        assert open_images(path).sha256() == digest.hexdigest()
    assert open_images(path, image_size=4).sha256() != digest.hexdigest()


@pytest.mark.parametrize("write", [folder, archive])
def test_labels_of_folders_and_of_edm(tmp_path: pathlib.Path, write: Any) -> None:
    assert load_dataset(write(tmp_path / "set", CLASSES)).labels.tolist() == [0, 0, 0, 1, 1, 1]
    labels = {"labels": [[name, 7 - int(name[2])] for name in CLASSES]}
    edm = CLASSES | {"dataset.json": json.dumps(labels).encode()}
    dataset = load_dataset(write(tmp_path / "edm", edm), name="mine")
    assert (dataset.name, dataset.labels.tolist()) == ("mine", [7, 5, 3, 6, 4, 2])
    assert dataset.labels.dtype == np.int64
    null = CLASSES | {"dataset.json": b'{"labels": null}'}
    assert open_images(write(tmp_path / "null", null)).labels is None


def test_labels_of_imagenets_file_names_and_of_arr_1(tmp_path: pathlib.Path) -> None:
    names = ["n01440764_2.JPEG", "n01443537_10.JPEG", "n01440764_10.JPEG"]
    path = folder(tmp_path / "set", dict.fromkeys(names, encoded(PIXELS[0])))
    assert open_images(path).labels.tolist() == [0, 0, 1]
    (path / "n02_9.png").write_bytes(encoded(PIXELS[0]))
    assert open_images(path).labels is None  # one image without a class
    path = arrays(tmp_path / "x.npz", PIXELS, np.arange(6, dtype=np.int32))
    assert open_images(path).labels.tolist() == list(range(6))


@pytest.mark.parametrize("source", ["missing", "missing.zip", "cifar10"])
def test_a_missing_data_set_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=f"^no data set at '{source}'; allowed are a folder or"):
        load_dataset(source)


# Training


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


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_images_are_taken_as_writable_copies(
    tmp_path: pathlib.Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch warns of arrays that cannot be written; a change may not reach the data set."""
    monkeypatch.setattr(opening, "MAX_BYTES_IN_MEMORY", PIXELS.nbytes if in_memory else 0)
    path = folder(tmp_path / "set", files() | {"6.png": encoded(PIXELS[0])[:60]})
    with pytest.raises(ValueError, match=r"^cannot decode 6\.png"):
        training(path, 8).take(range(7))
    (path / "6.png").unlink()
    images = training(path, 8)
    assert isinstance(images, ImageDataset) == in_memory
    taken = images.take(np.array([5, 0, 5]))
    assert torch.from_numpy(taken).data_ptr() == taken.ctypes.data
    taken += 1
    np.testing.assert_array_equal(images.take([5, 0, 5]), PIXELS[[5, 0, 5]])
    with pytest.raises(ValueError, match=r"0\.png has 8x8 pixels, the network takes 9x9"):
        training(path, 9)
