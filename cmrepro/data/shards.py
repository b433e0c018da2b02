"""Images in tar shards (the layout of webdataset), read at random places.

An index of where each image lies is made once, by reading the shards' headers, and kept in the
cache folder. The order of the images thus does not depend on which shards a process reads first.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmrepro.data.decoding import SUFFIXES
from cmrepro.files import atomic_path, cache_folder

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of shards, as webdataset writes it: {0000..0146}


def shard_paths(source: str | Path) -> list[Path]:
    """The shards that a folder, a .tar or a range such as train-{0000..0146}.tar names, or none.

    Raises:
        ValueError: A shard of a range is missing.
    """
    path = Path(source)
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.suffix != ".tar":
        return []
    if not (match := RANGE.search(str(source))):
        return [path] if path.is_file() else []
    first, last = match.groups()
    paths = [
        Path(RANGE.sub(str(i).zfill(len(first)), str(source), count=1))
        for i in range(int(first), int(last) + 1)
    ]
    for shard in paths:
        if not shard.is_file():
            raise ValueError(f"shard {shard} of {source} is missing; allowed are whole ranges")
    return paths


@dataclass(frozen=True)
class _Index:
    """Where the images of some shards lie, in the order of their names.

    Attributes:
        names: SHARD/MEMBER, N of them.
        shards: (N,) number of the shard.
        offsets: (N,) first byte in it.
        lengths: (N,) bytes.
        labels: (N,) class from the .cls file of the same key; (0,) where there are none.
    """

    names: list[str]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


class TarShards:
    """The images in some tar files.

    Args:
        paths: Of the shards, of different names.

    Raises:
        ValueError: One is compressed, cut off or no tar file; only some images have a .cls file,
            or one of these holds no class number.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        index = _load_index(self.paths)
        self.names = index.names
        self.labels = index.labels if len(index.labels) else None
        self._index = index
        self._numbers = {name: i for i, name in enumerate(index.names)}

    def read(self, name: str) -> bytes:
        i = self._numbers[name]
        length = int(self._index.lengths[i])
        with open(self.paths[self._index.shards[i]], "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, int(self._index.offsets[i]))

    def lengths(self, names: Sequence[str]) -> list[int]:
        return [int(self._index.lengths[self._numbers[name]]) for name in names]


def _load_index(paths: list[Path]) -> _Index:
    """The index in the cache folder, made first where there is none of these very files."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    file = cache_folder() / "shards" / f"{digest.hexdigest()}.npz"
    if not file.exists():
        index = _make_index(paths)
        text = np.frombuffer("\n".join(index.names).encode("utf-8", "surrogateescape"), np.uint8)
        with atomic_path(file) as temporary:
            np.savez(temporary, **{**vars(index), "names": text})
        return index
    with np.load(file, allow_pickle=False) as arrays:
        columns = {key: arrays[key] for key in ("shards", "offsets", "lengths", "labels")}
        text = arrays["names"].tobytes().decode("utf-8", "surrogateescape")
    return _Index(text.split("\n") if text else [], **columns)


def _make_index(paths: list[Path]) -> _Index:
    rows: list[tuple[str, int, int, int]] = []
    classes: dict[str, int] = {}
    for number, path in enumerate(tqdm(paths, desc="index", unit="shard", delay=2)):
        for member, label in _members(path):
            name = f"{path.name}/{member.name}"
            if label is not None:
                classes[_key(name)] = label
            else:
                rows.append((name, number, member.offset_data, member.size))
    rows.sort()
    names = [row[0] for row in rows]
    labels = [classes.get(_key(name), -1) for name in names] if classes else []
    if -1 in labels:
        raise ValueError(
            f"{names[labels.index(-1)]} has no .cls file, others have; either all images need a "
            "class or none"
        )
    places = np.array([row[1:] for row in rows], np.int64).reshape(-1, 3)
    shards, offsets, lengths = places.T.copy()
    return _Index(names, shards, offsets, lengths, np.array(labels, np.int64))


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, int | None]]:
    """The images of a shard, and its .cls files with the class in each."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                suffix = Path(member.name).suffix.lower()
                if member.isfile() and suffix == ".cls":
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    yield member, _class(f"{path}/{member.name}", file.read())
                elif member.isfile() and suffix in SUFFIXES:
                    yield member, None
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{path} is no whole tar file ({error}); fetch it again, or unpack a compressed one"
        ) from error


def _class(name: str, text: bytes) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{name} holds {text[:20]!r}; allowed is a class number, 0 or more")
    return int(text)


def _key(name: str) -> str:
    """What the files of one sample have in common: all before the first dot of their name."""
    shard, _, member = name.partition("/")
    folder, slash, file = member.rpartition("/")
    return f"{shard}/{folder}{slash}{file.partition('.')[0]}"
