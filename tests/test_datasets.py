"""Data sets: folders and zips of images, sample sets, synthetic."""

import hashlib
import io
import json
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmrepro.data import ImageDataset, images_sha256, load_dataset, open_images, synthetic

SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
# Written in another order than the sorted one in which they are read.
NAMES = {"dog/1.png": 3, "cat/2.png": 1, "dog/0.PNG": 2, "cat/1.png": 0}


def png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "png")
    return file.getvalue()


def class_folders() -> dict[str, bytes]:
    return {name: png(PIXELS[i]) for name, i in NAMES.items()}


def write(path: pathlib.Path, contents: dict[str, bytes]) -> pathlib.Path:
    """A folder, or a zip where the name ends so."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        for name, data in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def error_of(source: str | pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_dataset(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


both = pytest.mark.parametrize("target", ["set", "set.zip"])


@both
def test_images_come_in_sorted_order_with_the_classes_of_their_folders(
    tmp_path: pathlib.Path, target: str
) -> None:
    extra = {"notes.txt": b"no image", "cat/readme.md": b"neither"}
    dataset = load_dataset(write(tmp_path / target, class_folders() | extra))
    assert dataset.name == "set"
    np.testing.assert_array_equal(dataset.images, PIXELS)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.labels.dtype == np.int64


@both
def test_edm_labels_go_before_folders(tmp_path: pathlib.Path, target: str) -> None:
    labels = [[name, 7 - i] for name, i in NAMES.items()]
    contents = class_folders() | {"dataset.json": json.dumps({"labels": labels}).encode()}
    dataset = load_dataset(write(tmp_path / target, contents), name="mine")
    assert dataset.name == "mine"
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [7, 6, 5, 4]


@pytest.mark.parametrize("labels", [{"dataset.json": b'{"labels": null}'}, None])
def test_without_classes_there_are_no_labels(tmp_path: pathlib.Path, labels: Any) -> None:
    """EDM writes null; else all images lie in one folder."""
    contents = class_folders() | labels if labels else {"a/1.png": png(PIXELS[0])}
    assert load_dataset(write(tmp_path / "set.zip", contents)).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "dataset.json cannot be read"),
        (b"[]", "dataset.json cannot be read"),
        (b"{}", "dataset.json cannot be read .KeyError"),
        (b'{"labels": 3}', "dataset.json cannot be read"),
        (b'{"labels": [["cat/1.png", 0]]}', "differ by 3 names, the first is cat/2.png"),
        (b'{"labels": [%s, ["gone.png", 0]]}', "differ by 1 names, the first is gone.png"),
        (b'{"labels": [%s, ["cat/1.png", 0.5]]}', "label 0.5 for cat/1.png"),
        (b'{"labels": [%s, ["cat/1.png", [0, 1]]]}', r"label \[0, 1\] for cat/1.png"),
    ],
)
def test_labels_that_do_not_fit_the_images(
    tmp_path: pathlib.Path, text: bytes, message: str
) -> None:
    whole = ", ".join(json.dumps([name, 0]) for name in NAMES).encode()
    contents = class_folders() | {"dataset.json": text.replace(b"%s", whole)}
    assert re.search(message, error_of(write(tmp_path / "set", contents)))


@both
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(PIXELS[0, :4]), r"'set' mixes sizes: cat/1.png is \(6, 5\), m.png is \(4, 5\)"),
        (png(PIXELS[0], "L"), "m.png is L, allowed is RGB"),
        (png(PIXELS[0], "RGBA"), "m.png is RGBA, allowed is RGB"),
        (png(PIXELS[0])[:60], "m.png cannot be decoded"),
        (png(PIXELS[0])[:-30] + bytes(30), "m.png cannot be decoded"),
        (b"", "m.png cannot be decoded"),
        (b"GIF89a", "m.png cannot be decoded"),
    ],
)
def test_an_odd_image_is_named(
    tmp_path: pathlib.Path, target: str, data: bytes, message: str
) -> None:
    contents = class_folders() | {"m.png": data}
    assert re.search(message, error_of(write(tmp_path / target, contents)))


def test_a_flipped_bit_in_a_zip_is_named(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "set.zip", class_folders())
    damaged = path.read_bytes().replace(png(PIXELS[1]), png(PIXELS[1])[:-1] + b"x")
    path.write_bytes(damaged)
    assert "cat/2.png cannot be decoded (Bad CRC-32" in error_of(path)


def test_a_cut_off_zip_is_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "set.zip", class_folders())
    path.write_bytes(path.read_bytes()[:-40])
    assert "set.zip is not a whole zip file" in error_of(path)


@both
def test_a_place_without_images_is_refused(tmp_path: pathlib.Path, target: str) -> None:
    path = write(tmp_path / target, {"a.txt": b"text"})
    assert "no images in 'set'; allowed are files ending in .bmp" in error_of(path)


@pytest.mark.parametrize("source", ["missing", "missing.zip", "missing.npz", "cifar10"])
def test_what_does_not_exist_is_refused(source: str) -> None:
    assert error_of(source).startswith(f"no data set at '{source}'; allowed are cifar10-train")


def test_a_sample_set_is_read(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "a.npz", PIXELS, np.array([3, 2, 1, 0], np.int32))
    np.savez(tmp_path / "b.npz", PIXELS)
    with_labels, without = load_dataset(tmp_path / "a.npz"), load_dataset(tmp_path / "b.npz")
    np.testing.assert_array_equal(with_labels.images, PIXELS)
    assert with_labels.labels is not None
    assert with_labels.labels.tolist() == [3, 2, 1, 0]
    assert without.labels is None
    assert with_labels.sha256() == without.sha256() == hashlib.sha256(PIXELS.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([PIXELS / np.float32(255)], r"arr_0 float32 \(4, 6, 5, 3\); allowed is uint8"),
        ([PIXELS[0]], r"arr_0 uint8 \(6, 5, 3\)"),
        ([PIXELS.transpose(0, 3, 1, 2)], r"arr_0 uint8 \(4, 3, 6, 5\)"),
        ([PIXELS[:0]], r"arr_0 uint8 \(0, 6, 5, 3\)"),
        ([PIXELS, np.zeros(4)], r"arr_1 float64 \(4,\); allowed are integer"),
        ([PIXELS, np.zeros(3, np.int64)], r"arr_1 int64 \(3,\); allowed are integer"),
        ([np.array([{}])], r"arr_0 object \(1,\); allowed is uint8"),
        ([np.asfortranarray(PIXELS)], "write it in row-major order"),
        ([], "is not a sample set"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: pathlib.Path, arrays: list[Any], message: str
) -> None:
    np.savez(tmp_path / "a.npz", *arrays, **({} if arrays else {"images": PIXELS}))
    assert re.search(message, error_of(tmp_path / "a.npz"))


def test_broken_sample_sets_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, PIXELS)
    whole = path.read_bytes()
    npy = io.BytesIO()
    np.save(npy, PIXELS)
    for data in (whole[:-10], whole[:90] + bytes(40) + whole[130:], npy.getvalue(), b"", b"text"):
        path.write_bytes(data)
        assert "is not a sample set" in error_of(path)


def test_synthetic_images_are_the_same_for_the_same_seed() -> None:
    a, b, other = synthetic(8, 16), synthetic(8, 16), synthetic(8, 16, seed=1)
    assert a.images.shape == (8, 16, 16, 3)
    assert a.sha256() == b.sha256() != other.sha256()
    assert load_dataset("synthetic").sha256() == synthetic().sha256()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the JPEG images of CIFAR-10 are not here")
def test_the_jpeg_test_images_decode() -> None:
    dataset = load_dataset(SHARED / "data" / "cifar10-jpeg-test.zip")
    assert dataset.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.labels).tolist() == [1000] * 10


@pytest.fixture(params=["set", "set.zip", "set.npz", "array"])
def source(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    """The same images from every kind of source."""
    if request.param == "array":
        return ImageDataset("set", PIXELS)
    if request.param == "set.npz":
        np.savez_compressed(tmp_path / "set.npz", arr_0=PIXELS)
        return open_images(tmp_path / "set.npz")
    return open_images(write(tmp_path / request.param, class_folders()))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 9])
def test_batches_are_parts_of_the_whole(source: Any, batch_size: int) -> None:
    for start, stop in [(0, None), (0, 2), (1, 4), (2, 2)]:
        batches = list(source.batches(batch_size, start, stop))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        together = np.concatenate([*batches, PIXELS[:0]])
        np.testing.assert_array_equal(together, PIXELS[start:stop])
    assert (source.name, source.num_images) == ("set", 4)
    assert images_sha256(source) == hashlib.sha256(PIXELS.tobytes()).hexdigest()
    assert images_sha256(source, 3) == hashlib.sha256(PIXELS[:3].tobytes()).hexdigest()


def test_a_file_is_decoded_only_when_its_images_are_asked_for(tmp_path: pathlib.Path) -> None:
    folder = write(tmp_path / "set", class_folders() | {"dog/9.png": b"no image"})
    source = open_images(folder)
    assert source.num_images == 5
    assert sum(len(batch) for batch in source.batches(2, 0, 4)) == 4
    with pytest.raises(ValueError, match=r"dog/9\.png cannot be decoded"):
        list(source.batches(2, 4))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_sample_set_is_noticed_when_it_is_read(
    tmp_path: pathlib.Path, save: Any
) -> None:
    path = tmp_path / "set.npz"
    save(path, arr_0=np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert re.search("set.npz is damaged .*; write it again", error_of(path))
