"""Files written atomically, checksums, resumable downloads, the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 20
RECORDED = "recorded at first download"  # stands for a checksum that nobody publishes


class DownloadError(ValueError):
    """A download that failed: nothing is wrong with what was asked for."""


def make_folder(path: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        ValueError: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def require_writable(path: Path) -> None:
    """Refuse a file or folder that could not be written, before the work for it; makes nothing.

    Raises:
        ValueError: It cannot be made or written.
    """
    absolute = path.absolute()
    places = [absolute, *absolute.parents] if path.is_dir() else absolute.parents
    try:
        with tempfile.TemporaryFile(dir=next(place for place in places if place.exists())):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot write {path}: {error.strerror}; choose a writable one with --out")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends without an error.

    An interrupted or failing block leaves neither the temporary file nor a partial `path`.

    Args:
        path: Final name; its folder is made when missing.

    Raises:
        ValueError: The folder cannot be written, or its disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"cannot write {path}: no space left on its disk; free some or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def array_sha256(array: NDArray[Any]) -> str:
    """Hexadecimal SHA-256 of an array's values in C order."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where downloads are kept: `CMREPRO_CACHE`, or the user's cache folder."""
    if folder := os.environ.get("CMREPRO_CACHE"):
        return Path(folder)
    import platformdirs

    return Path(platformdirs.user_cache_dir("cmrepro"))


def download(url: str, path: Path, checksum: str) -> Path:
    """Fetch `url` to `path`, going on where an interrupted download stopped.

    A file that is already there is used after its checksum. Processes that want the same file at
    once fetch it once.

    Args:
        url: Address.
        path: Final name; `path` + ".part" holds what has arrived so far.
        checksum: As for `require_checksum`, or `RECORDED`. Then the first file's SHA-256 is
            recorded in `path` + ".sha256", as `sha256sum` writes it, and later files must match.

    Returns:
        `path`.

    Raises:
        DownloadError: Address unreachable (says where to put the file by hand), or no space.
        ValueError: Wrong checksum.
    """
    if path.exists():
        _check(path, path, checksum)
        return path
    with _fetching(url, path):
        if path.exists():  # by now: another process has fetched it
            _check(path, path, checksum)
        else:
            part = _fetch(url, path)
            _check(part, path, checksum)
            os.replace(part, path)
    return path


def _check(arrived: Path, path: Path, checksum: str) -> None:
    """Hold what has arrived for `path` against its checksum, or that of the first download."""
    where = ""
    if checksum == RECORDED:
        record = checksum_record(path)
        if not record.exists():
            with atomic_path(record) as temporary:
                temporary.write_text(f"{sha256(arrived)}  {path.name}\n")
        checksum, where = recorded_checksum(path), f" as recorded in {record}"
    require_checksum(arrived, checksum, f"{where}; delete it and download again")


def checksum_record(path: Path) -> Path:
    """Where the SHA-256 of a first download is kept."""
    return path.with_name(path.name + ".sha256")


def recorded_checksum(path: Path) -> str:
    """The recorded checksum of a download, "sha256:…"."""
    return f"sha256:{checksum_record(path).read_text()[:64]}"


def require_checksum(path: Path, checksum: str, advice: str) -> None:
    """Refuse a file with another checksum.

    Args:
        path: The file.
        checksum: "sha256:…" or "md5:…"; "sha256-prefix:…" asks for the first digits only.
        advice: What to do about another one; ends the message.

    Raises:
        ValueError: It has another one.
    """
    kind, expected = checksum.split(":")
    algorithm = kind.removesuffix("-prefix")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if (found if kind == algorithm else found[: len(expected)]) != expected:
        raise ValueError(f"{path} has {algorithm} {found}, expected {expected}{advice}")


@contextlib.contextmanager
def _fetching(url: str, path: Path) -> Iterator[None]:
    """One process at a time, for instance of those of `torchrun`; errors of network and disk."""
    from filelock import FileLock

    part, lock = (path.with_name(path.name + suffix) for suffix in (".part", ".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:  # the network's errors are among them
        if error.errno == errno.ENOSPC:
            raise DownloadError(
                f"no space left for {part}; free some, or set CMREPRO_CACHE to a folder on "
                "another disk, and run it again to go on"
            ) from error
        raise DownloadError(
            f"cannot download {url} to {part} ({type(error).__name__}); run it again to go on, or "
            f"put the file at {path} by hand"
        ) from error


def _fetch(url: str, path: Path) -> Path:
    import requests
    from tqdm import tqdm

    part = path.with_name(path.name + ".part")
    # The bytes of the file itself: its checksum and its ranges do not know of compression.
    headers = {"Accept-Encoding": "identity"}
    have = part.stat().st_size if part.exists() else 0
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == 416:  # the part is the whole file already
            return part
        response.raise_for_status()
        resumed = response.status_code == 206
        initial = have * resumed
        total = initial + int(response.headers.get("Content-Length", 0))
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=path.name) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    return part
