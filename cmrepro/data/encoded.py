"""Where encoded images lie: folders, zips, LMDB. Tar shards are in `shards`.

Each kind has the sorted `names` of all its files, reads one by name, from any thread and after a
fork too, and knows their lengths without reading them.
"""

import functools
import os
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import lmdb


class EncodedFiles(Protocol):
    """Files by name."""

    @property
    def names(self) -> Sequence[str]:
        """All of them, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of one."""

    def lengths(self, names: Sequence[str]) -> list[int]:
        """Their numbers of bytes."""


class FolderFiles:
    """The files below a folder, named by their paths from there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(
            Path(folder, name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path)
            for name in names
        )

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def lengths(self, names: Sequence[str]) -> list[int]:
        return [os.stat(self.path / name).st_size for name in names]


class ZipFiles:
    """The files in a zip.

    Raises:
        ValueError: It is no whole zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._process = -1
        self.names = sorted(n for n in self._archive().namelist() if not n.endswith("/"))

    def _archive(self) -> zipfile.ZipFile:
        """Opened once in each process: the position in an open file is shared across a fork."""
        with self._lock:
            if self._process != os.getpid():
                try:
                    self._opened = zipfile.ZipFile(self.path)
                except zipfile.BadZipFile as error:
                    raise ValueError(
                        f"{self.path} is not a whole zip file ({error}); fetch or write it again"
                    ) from error
                self._process = os.getpid()
            return self._opened

    def read(self, name: str) -> bytes:
        return self._archive().read(name)

    def lengths(self, names: Sequence[str]) -> list[int]:
        return [self._archive().getinfo(name).file_size for name in names]


class LmdbFiles:
    """The values of an LMDB folder by their keys, as LSUN is published: each an encoded image.

    Raises:
        ValueError: The package is missing, or the folder holds no whole database.
    """

    def __init__(self, path: Path) -> None:
        self._environment = _lmdb_environment(path.resolve())
        with self._environment.begin() as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            self.names = [key.decode("utf-8", "surrogateescape") for key in keys]  # in order

    def read(self, name: str) -> bytes:
        with self._environment.begin() as transaction:
            value = transaction.get(name.encode("utf-8", "surrogateescape"))
        if value is None:
            raise KeyError(name)
        return value

    def lengths(self, names: Sequence[str]) -> list[int]:
        with self._environment.begin(buffers=True) as transaction:
            keys = (name.encode("utf-8", "surrogateescape") for name in names)
            return [len(transaction.get(key, b"")) for key in keys]


@functools.cache  # the library opens a database once in a process only
def _lmdb_environment(path: Path) -> "lmdb.Environment":
    """Without its lock table, which reading does not need; it may then be used after a fork."""
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
        raise ValueError(f"{path} is no LMDB ({error}); fetch it again") from error
    # A page beyond the end of the file would end the process with a bus error.
    pages = environment.info()["last_pgno"] + 1
    if (needed := pages * environment.stat()["psize"]) > os.path.getsize(path / "data.mdb"):
        raise ValueError(f"{path / 'data.mdb'} is shorter than its {needed} bytes; fetch it again")
    return environment
