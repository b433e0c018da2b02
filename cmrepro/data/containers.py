"""Image files: their containers (folders, zips, LMDB), labels, decoding, and grids of images."""

import functools
import io
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
WNID = re.compile(r"n\d{8}(?=_)")  # ImageNet's class names, e.g. n01440764_10026.JPEG

Labels = NDArray[np.int64] | None


class Container(NamedTuple):
    """Image files, read from any thread and after a fork."""

    image_names: list[str]  # sorted
    labels: Labels  # classes (N,)
    read: Callable[[str], bytes]
    length: Callable[[str], int]  # bytes, without reading the file


def folder_files(path: Path) -> Container:
    """Images below a folder, named by their relative paths."""
    names = [
        Path(folder, name).relative_to(path).as_posix()
        for folder, _, names in os.walk(path)
        for name in names
    ]
    return _container(
        names, lambda name: (path / name).read_bytes(), lambda name: (path / name).stat().st_size
    )


def zip_files(path: Path) -> Container:
    """Images in a zip, which each process opens: forked ones share an open file's position."""

    @functools.cache
    def archive(process: int) -> zipfile.ZipFile:
        return zipfile.ZipFile(path)

    try:
        names = archive(os.getpid()).namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete zip file ({error}); write it again") from error
    return _container(
        names,
        lambda name: archive(os.getpid()).read(name),
        lambda name: archive(os.getpid()).getinfo(name).file_size,
    )


@functools.cache  # a process may open a database only once
def lmdb_files(path: Path) -> Container:
    """Values of an LMDB folder by their keys, as LSUN is published: each an encoded image."""
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(f"{path} is an LMDB; pip install 'cmrepro[lmdb]' to read it") from error
    try:  # without lock table, which reading does not need
        database = lmdb.open(str(path), readonly=True, create=False, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ValueError(f"{path} is not an LMDB ({error}); fetch it again") from error
    # A page beyond the end of the file would end the process with a bus error.
    needed = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    if needed > os.path.getsize(path / "data.mdb"):
        raise ValueError(f"{path / 'data.mdb'} is shorter than its {needed} bytes; fetch it again")

    def value(convert: Callable[[memoryview | bytes], Any], name: str) -> Any:
        with database.begin(buffers=True) as transaction:
            return convert(transaction.get(os.fsencode(name), b""))

    with database.begin() as transaction:
        keys = transaction.cursor().iternext(keys=True, values=False)  # sorted
        names = [os.fsdecode(key) for key in keys]
    return Container(names, None, partial(value, bytes), partial(value, len))


def _container(
    names: Sequence[str], read: Callable[[str], bytes], length: Callable[[str], int]
) -> Container:
    """Images among files, and their labels."""
    image_names = sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES)
    edm = read("dataset.json") if "dataset.json" in names else None
    return Container(image_names, _labels(image_names, edm), read, length)


def _labels(image_names: Sequence[str], edm: bytes | None) -> Labels:
    """Labels by EDM's dataset.json, or by the sorted class folders, or by ImageNet's classes."""
    if edm is None:
        classes = [str(PurePosixPath(name).parent) for name in image_names]
        if len(set(classes)) < 2:
            matches = [WNID.match(PurePosixPath(name).name) for name in image_names]
            classes = [match.group() for match in matches if match]
        unique, numbers = np.unique(classes, return_inverse=True)
        return numbers if len(numbers) == len(image_names) and len(unique) > 1 else None
    try:
        labels = msgspec.json.decode(edm, type=dict[str, list[tuple[str, int]] | None])["labels"]
    except (KeyError, msgspec.DecodeError) as error:
        allowed = '{"labels": [[FILE, CLASS], …]} with integer classes, or {"labels": null}'
        raise ValueError(f"dataset.json cannot be read ({error}); allowed is {allowed}") from error
    if labels is None:
        return None
    by_name = dict(labels)
    if odd := sorted(by_name.keys() ^ set(image_names)):
        raise ValueError(f"dataset.json and the images differ by {len(odd)} names, e.g. {odd[0]}")
    return np.array([by_name[name] for name in image_names], np.int64)


def read_image(name: str, files: Container, convert: bool) -> Image.Image:
    """RGB image of a file; one of another mode is converted or refused."""
    try:
        image: Image.Image = Image.open(io.BytesIO(files.read(name)))
        image.load()
        image = image.convert("RGB") if convert else image
    except Exception as error:  # Pillow, zipfile and zlib each raise their own kinds
        raise ValueError(f"cannot decode {name} ({error}); replace it") from error
    if image.mode != "RGB":
        raise ValueError(f"{name} is {image.mode}, allowed is RGB; convert the images beforehand")
    return image


def centre_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Central square (size, size, 3) of an RGB image, resized as for ADM and the official code.

    The image is halved with the box filter while its shorter side is at least 2 * size, resized to
    it with the bicubic filter, and cropped (Dhariwal and Nichol 2021; `center_crop_arr` in
    openai/guided-diffusion at 81916c0, MIT licence, which openai/consistency_models uses). LSUN's
    images, whose shorter side is 256, are only cropped.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
