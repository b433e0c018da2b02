"""Containers of image files: folders, zips, LMDB.

Each has the sorted `names` of its files, reads one from any thread and after a fork, and knows its
length in bytes without reading it.
"""

import functools
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import lmdb

WNID = re.compile(r"n\d{8}(?=_)")  # ImageNet's class names, e.g. n01440764_10026.JPEG


class FolderFiles:
    """Files below a folder, named by their relative paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(
            Path(folder, name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path)
            for name in names
        )

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def length(self, name: str) -> int:
        return os.stat(self.path / name).st_size


class ZipFiles:
    """Files in a zip.

    Raises:
        ValueError: Not a complete zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archives: dict[int, zipfile.ZipFile] = {}
        try:
            self.names = sorted(n for n in self._archive().namelist() if not n.endswith("/"))
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is not a complete zip file ({error}); fetch or write it again"
            ) from error

    def _archive(self) -> zipfile.ZipFile:
        """Archive opened by this process: forked processes share the position in an open file."""
        process = os.getpid()
        if process not in self._archives:
            self._archives[process] = zipfile.ZipFile(self.path)
        return self._archives[process]

    def read(self, name: str) -> bytes:
        return self._archive().read(name)

    def length(self, name: str) -> int:
        return self._archive().getinfo(name).file_size


class LmdbFiles:
    """Values of an LMDB folder by their keys, as LSUN is published: each an encoded image.

    Raises:
        ValueError: The package is missing, or the folder holds no complete database.
    """

    def __init__(self, path: Path) -> None:
        self._environment = _lmdb_environment(path.resolve())
        with self._environment.begin() as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            self.names = [os.fsdecode(key) for key in keys]  # sorted by LMDB

    def read(self, name: str) -> bytes:
        with self._environment.begin() as transaction:
            return transaction.get(os.fsencode(name), b"")

    def length(self, name: str) -> int:
        with self._environment.begin(buffers=True) as transaction:
            return len(transaction.get(os.fsencode(name), b""))


Container = FolderFiles | ZipFiles | LmdbFiles


@functools.cache  # a process may open a database only once
def _lmdb_environment(path: Path) -> "lmdb.Environment":
    """Database without lock table, which reading does not need; usable after a fork."""
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(
            f"{path} is an LMDB, which needs the package lmdb: pip install 'cmrepro[lmdb]'"
        ) from error
    try:
        environment = lmdb.open(
            str(path), readonly=True, create=False, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise ValueError(f"{path} is not an LMDB ({error}); fetch it again") from error
    # A page beyond the end of the file would end the process with a bus error.
    pages = environment.info()["last_pgno"] + 1
    if (needed := pages * environment.stat()["psize"]) > os.path.getsize(path / "data.mdb"):
        raise ValueError(f"{path / 'data.mdb'} is shorter than its {needed} bytes; fetch it again")
    return environment


class EdmLabels(msgspec.Struct):
    """EDM's dataset.json."""

    labels: list[tuple[str, int]] | None


def labels_of(image_names: Sequence[str], files: Container) -> NDArray[np.int64] | None:
    """Labels (N,) of EDM's dataset.json, else of class folders, else of ImageNet's file names.

    Returns:
        Classes numbered in the order of their sorted names; None without any sign of classes.

    Raises:
        ValueError: dataset.json cannot be read or does not fit the images.
    """
    if "dataset.json" in files.names:
        return _edm_labels(image_names, files.read("dataset.json"))
    classes = [str(PurePosixPath(name).parent) for name in image_names]
    if len(set(classes)) < 2:
        matches = [WNID.match(PurePosixPath(name).name) for name in image_names]
        classes = [match.group() for match in matches if match]
    numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
    if len(classes) < len(image_names) or len(numbers) < 2:
        return None
    return np.array([numbers[name] for name in classes], np.int64)


def _edm_labels(image_names: Sequence[str], text: bytes) -> NDArray[np.int64] | None:
    try:
        labels = msgspec.json.decode(text, type=EdmLabels).labels
    except msgspec.DecodeError as error:
        raise ValueError(
            f"dataset.json cannot be read ({error}); allowed is "
            '{"labels": [[FILE, CLASS], …]} with integer classes, or {"labels": null}'
        ) from error
    if labels is None:
        return None
    by_name = dict(labels)
    if unmatched := sorted(by_name.keys() ^ set(image_names)):
        raise ValueError(
            f"dataset.json and the images differ by {len(unmatched)} names, the first is "
            f"{unmatched[0]}; every image needs a label and every label an image"
        )
    return np.array([by_name[name] for name in image_names], np.int64)
