"""Data sets: every container gives the same images; labels; refusals of what is not a data set."""

import hashlib
import io
import json
import multiprocessing
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from cmrepro.data import ImageDataset, images_sha256, load_dataset, open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 6, 5, 3), np.uint8)
# Written in another order than the sorted one in which they are read.
NAMES = ["b/4.PNG", "a/1.png", "b/5.png", "a/0.png", "a/2.png", "b/3.png"]


def encoded(pixels: np.ndarray, mode: str = "RGB", kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, lossless=True)
    return file.getvalue()


def contents(kind: str = "png") -> dict[str, bytes]:
    return {name: encoded(PIXELS[int(name[2])], kind=kind) for name in NAMES}


def write(path: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    """A zip where the name ends so, else a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
                archive.writestr(f"{name}.txt", bytes(50_000))  # no buffer holds two images
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_lmdb(path: pathlib.Path, values: Mapping[str, bytes]) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def write_npz(path: pathlib.Path, save: Callable[..., None] = np.savez) -> pathlib.Path:
    save(path, PIXELS, np.arange(6, dtype=np.int32))
    return path


WRITERS: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "folder": lambda path: write(path / "set", contents()),
    "zip": lambda path: write(path / "set.zip", contents()),
    "lmdb": lambda path: write_lmdb(path / "set", contents("webp")),
    "npz": lambda path: write_npz(path / "set.npz"),
    "compressed": lambda path: write_npz(path / "set.npz", np.savez_compressed),
}


@pytest.fixture(params=[*WRITERS, "array"])
def source(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    if request.param == "array":
        return ImageDataset("set", PIXELS)
    return open_images(WRITERS[request.param](tmp_path))


def error_of(source: str | pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_dataset(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_batches_are_parts_of_the_whole(source: Any, batch_size: int) -> None:
    assert (source.name, source.num_images, source.image_shape) == ("set", 6, (6, 5, 3))
    for start, stop in [(0, None), (0, 2), (1, 5), (2, 2)]:
        batches = list(source.batches(batch_size, start, stop))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        np.testing.assert_array_equal(np.concatenate([*batches, PIXELS[:0]]), PIXELS[start:stop])
    assert images_sha256(source) == hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert images_sha256(source, 3) == hashlib.sha256(PIXELS[:3].tobytes()).hexdigest()


@pytest.mark.parametrize("kind", WRITERS)
def test_images_are_taken_by_number_also_after_a_fork(kind: str, tmp_path: pathlib.Path) -> None:
    """Processes that share an archive's position in its file would read anything."""
    source = open_images(WRITERS[kind](tmp_path))
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


def test_only_requested_images_are_decoded(tmp_path: pathlib.Path) -> None:
    source = open_images(write(tmp_path / "set", contents() | {"c/6.png": b"no image"}))
    assert sum(len(batch) for batch in source.batches(2, 0, 6)) == 6
    with pytest.raises(ValueError, match=r"cannot decode c/6\.png \(.*; replace it"):
        list(source.batches(2, 6))


def test_the_checksum_of_files_is_that_of_names_lengths_and_size(tmp_path: pathlib.Path) -> None:
    """Training states hold it: it may not change. The container does not matter."""
    folder = write(tmp_path / "set", contents())
    digest = hashlib.sha256(b"None\n")
    for name in sorted(NAMES):
        digest.update(f"{name}\0{(folder / name).stat().st_size}\n".encode())
    for path in (folder, write(tmp_path / "other.zip", contents())):
        assert open_images(path).sha256() == digest.hexdigest()
    assert open_images(folder, image_size=4).sha256() != digest.hexdigest()


# ---- labels


@pytest.mark.parametrize("target", ["set", "set.zip"])
def test_labels_of_folders_and_of_edm(tmp_path: pathlib.Path, target: str) -> None:
    extra = {"notes.txt": b"no image", "a/readme.md": b"neither"}
    images = load_dataset(write(tmp_path / target, contents() | extra))
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    labels = [[name, 7 - int(name[2])] for name in NAMES]
    extra = {"dataset.json": json.dumps({"labels": labels}).encode()}
    dataset = load_dataset(write(tmp_path / target, contents() | extra), name="mine")
    assert (dataset.name, dataset.labels.tolist()) == ("mine", [7, 6, 5, 4, 3, 2])
    assert dataset.labels.dtype == np.int64


def test_labels_of_imagenets_file_names(tmp_path: pathlib.Path) -> None:
    for name in ["n01440764_2.JPEG", "n01443537_10.JPEG", "n01440764_10.JPEG"]:
        (tmp_path / name).write_bytes(encoded(PIXELS[0]))
    assert open_images(tmp_path).labels.tolist() == [0, 0, 1]
    (tmp_path / "n02_9.png").write_bytes(encoded(PIXELS[0]))
    assert open_images(tmp_path).labels is None  # one image without a class


def test_without_classes_or_arr_1_there_are_no_labels(tmp_path: pathlib.Path) -> None:
    assert open_images(WRITERS["npz"](tmp_path)).labels.tolist() == list(range(6))  # as arr_1
    null = {"dataset.json": b'{"labels": null}'}
    assert open_images(write(tmp_path / "edm", contents() | null)).labels is None
    assert open_images(write(tmp_path / "one", {"a/1.png": encoded(PIXELS[0])})).labels is None
    assert open_images(WRITERS["lmdb"](tmp_path)).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "dataset.json cannot be read"),
        (b"{}", "dataset.json cannot be read .*labels"),
        (b'{"labels": [["a/0.png", 0.5]]}', r"cannot be read .*int.*float.*\[0\]\[1\]"),
    ],
)
def test_labels_that_do_not_fit_the_images(
    tmp_path: pathlib.Path, text: bytes, message: str
) -> None:
    files = contents() | {"dataset.json": text}
    assert re.search(message, error_of(write(tmp_path / "set", files)))


# ---- refusals


@pytest.mark.parametrize("source", ["missing", "missing.zip", "missing.npz", "cifar10"])
def test_a_missing_data_set_is_refused(source: str) -> None:
    assert error_of(source).startswith(f"no data set at '{source}'; allowed are a folder or zip")
