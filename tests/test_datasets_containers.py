"""Data sets in LMDB and tar shards, and every container read at random places and after a fork."""

import io
import multiprocessing
import pathlib
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from cmrepro.data import (
    ImageDataset,
    ImageFiles,
    images_sha256,
    load_dataset,
    open_images,
    shards,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 6, 5, 3), np.uint8)
NAMES = ["b/4", "a/1", "b/5", "a/0", "a/2", "b/3"]  # written in another order than they are read


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, lossless=True)
    return file.getvalue()


def contents(suffix: str = ".png", kind: str = "png") -> dict[str, bytes]:
    return {name + suffix: encoded(PIXELS[int(name[-1])], kind) for name in NAMES}


def write_lmdb(path: pathlib.Path, values: Mapping[str, bytes]) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 22) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def write_tar(path: pathlib.Path, files: Mapping[str, bytes], mode: str = "w") -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: pathlib.Path) -> pathlib.Path:
    """Two shards of three images with a class each, and a file that is neither."""
    for shard, first in ((1, 3), (0, 0)):
        files: dict[str, bytes] = {"notes.txt": b"no image"}
        for i in (first + 1, first, first + 2):
            files |= {
                f"x.y/{i}.jpg.png": encoded(PIXELS[i]),
                f"x.y/{i}.cls": str(i % 3).encode(),
            }
        write_tar(folder / f"set-{shard:04}.tar", files)
    return folder


def write_folder(path: pathlib.Path) -> pathlib.Path:
    for name, data in contents().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path: pathlib.Path) -> pathlib.Path:
    """With something between the images, so that no buffer holds two of them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents().items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
            archive.writestr(f"{name}.txt", bytes(50_000))
    return path


WRITERS: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "folder": lambda path: write_folder(path / "set"),
    "zip": lambda path: write_zip(path / "set.zip"),
    "lmdb": lambda path: write_lmdb(path / "set", contents("", "webp")),
    "shards": lambda path: write_shards(path / "set"),
}


@pytest.fixture(params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> ImageFiles:
    opened = open_images(WRITERS[request.param](tmp_path))
    assert isinstance(opened, ImageFiles)
    return opened


def error_of(source: str | pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_dataset(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_container_gives_the_same_images_in_order(source: ImageFiles) -> None:
    assert (source.name, source.num_images, source.image_shape) == ("set", 6, (6, 5, 3))
    assert images_sha256(source) == ImageDataset("set", PIXELS).sha256()


@pytest.mark.parametrize("indices", [[], [5], [3, 0, 3, 5], range(6)])
def test_images_are_taken_by_number(source: ImageFiles, indices: Any) -> None:
    np.testing.assert_array_equal(source.take(indices), PIXELS[list(indices)])
    np.testing.assert_array_equal(source.take(np.array(indices, int)), PIXELS[list(indices)])


def test_a_forked_process_reads_while_its_parent_does(source: ImageFiles) -> None:
    """An archive's position in a file that both have open would be anywhere."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    source.take([0])  # opens it, and starts the threads

    def read() -> None:
        sending.send([source.take([i % 6]).tobytes() for i in range(200)])

    child = context.Process(target=read)
    child.start()
    ours = [source.take([i % 6]).tobytes() for i in range(200)]
    assert receiving.poll(30), "the child hangs"
    assert receiving.recv() == ours == [PIXELS[i % 6].tobytes() for i in range(200)]
    child.join()


def test_the_checksum_of_files_needs_no_image(tmp_path: pathlib.Path) -> None:
    """The same for the same files in another container; another for other ones."""
    folder, archive = write_folder(tmp_path / "set"), write_zip(tmp_path / "other.zip")
    (folder / "b" / "4.png").write_bytes(bytes(len(encoded(PIXELS[4]))))
    sums = [open_images(path).sha256() for path in (folder, archive)]
    assert sums[0] == sums[1]
    sums += [open_images(folder, image_size=size).sha256() for size in (4, 5)]
    (folder / "b" / "4.png").rename(folder / "b" / "6.png")
    sums.append(open_images(folder).sha256())
    (folder / "b" / "6.png").write_bytes(b"shorter")
    sums.append(open_images(folder).sha256())
    assert len(set(sums[1:])) == 5


def test_lmdb_images_have_no_classes_and_any_number_of_readers(tmp_path: pathlib.Path) -> None:
    path = write_lmdb(tmp_path / "bedroom_train_lmdb", contents("", "webp"))
    first, second = open_images(path), open_images(f"{path}/", name="mine")
    assert (first.name, second.name) == ("bedroom_train_lmdb", "mine")
    assert first.labels is None
    np.testing.assert_array_equal(first.take([4, 1]), second.take([4, 1]))


def test_a_folder_of_databases_asks_for_one(tmp_path: pathlib.Path) -> None:
    for name in ("cat_train_lmdb", "bedroom_train_lmdb"):
        write_lmdb(tmp_path / "lsun" / name, {})
    message = error_of(tmp_path / "lsun")
    assert message.endswith("give one of its LMDB folders: bedroom_train_lmdb, cat_train_lmdb")


def test_an_lmdb_that_is_none_or_cut_off_is_refused(tmp_path: pathlib.Path) -> None:
    """Reading a page beyond the file's end would kill the process."""
    whole = write_lmdb(tmp_path / "whole", {"a": bytes(100_000)}) / "data.mdb"
    for name, data in (("none", b"text" * 5000), ("cut", whole.read_bytes()[:-50_000])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_bytes(data)
    assert "none is no LMDB (" in error_of(tmp_path / "none")
    assert re.search(r"data.mdb is shorter than its \d+ bytes", error_of(tmp_path / "cut"))


def test_lmdb_without_its_package_says_how_to_install_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lmdb(tmp_path / "set", {})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "needs the package lmdb: pip install 'cmrepro[lmdb]'" in error_of(path)


def test_shards_have_the_classes_of_their_keys(tmp_path: pathlib.Path) -> None:
    folder = write_shards(tmp_path / "set")
    dataset = load_dataset(folder)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for name, count in (("set-{0000..0001}.tar", 6), ("set-{0001..0001}.tar", 3)):
        part = open_images(str(folder / name))
        np.testing.assert_array_equal(part.take([count - 1]), PIXELS[5:])
    assert load_dataset(folder / "set-0000.tar").name == "set-0000"
    assert load_dataset(write_tar(tmp_path / "a.tar", contents())).labels is None


def test_the_index_of_shards_is_made_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "set")
    before = load_dataset(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shards.tarfile, "open", lambda *_: pytest.fail("read the shards again"))
        again = load_dataset(folder)
    assert again.sha256() == before.sha256()
    np.testing.assert_array_equal(again.labels, before.labels)
    write_tar(folder / "set-0000.tar", {"0.png": encoded(PIXELS[0])})
    write_tar(folder / "set-0001.tar", {"0.png": encoded(PIXELS[1]), "n.txt": b"no image"})
    np.testing.assert_array_equal(load_dataset(folder).images, PIXELS[:2])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b"", "b.png": b"", "b.cls": b"1"}, "set.tar/a.png has no .cls file, others"),
        ({"a.png": b"", "a.cls": b"cat"}, r"set.tar/a.cls holds b'cat'; allowed is a class num"),
        ({"a.png": b"", "a.cls": b"-1"}, r"set.tar/a.cls holds b'-1'; allowed is a class num"),
        ({"a.txt": b""}, "no images in 'set'; allowed are files ending in .bmp"),
        ({"a.png": b"no image"}, r"set.tar/a.png cannot be decoded \("),
    ],
)
def test_shards_with_odd_files(
    tmp_path: pathlib.Path, files: dict[str, bytes], message: str
) -> None:
    assert re.search(message, error_of(write_tar(tmp_path / "set.tar", files)))


def test_shards_that_cannot_be_read_are_refused(tmp_path: pathlib.Path) -> None:
    path = write_tar(tmp_path / "set.tar", {"a.png": bytes(30_000), "b.png": bytes(30_000)})
    whole = path.read_bytes()
    compressed = write_tar(tmp_path / "b.tar", contents(), "w:gz").read_bytes()
    for data in (whole[:50_000], whole[:32_000], compressed, b"text" * 1000):
        path.write_bytes(data)
        assert "set.tar is no whole tar file (" in error_of(path)
    assert "shard" in error_of(str(tmp_path / "set-{00..01}.tar"))
    assert "set-00.tar" in error_of(str(tmp_path / "set-{00..01}.tar"))
