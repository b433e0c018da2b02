"""Atomic writes, checksums, resumable downloads, the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 20
LONGEST = 280  # of a message, characters
TIMEOUT_S = 30  # without a byte from a server
WAITS_S = (1, 4, 16)  # before a broken download continues
RECORDED = "recorded at first download"  # stands for a checksum that nobody publishes


class DownloadError(ValueError):
    """A failed download: the input is right, the network or the disk is not."""


def make_folder(path: Path) -> None:
    """Make a folder where it is missing, or refuse one that cannot be made or written."""
    with _write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    require_writable(path)


def require_writable(path: Path) -> None:
    """Refuse an output file or folder that cannot be written, before the work for it."""
    absolute = path.absolute()
    folders = [absolute, *absolute.parents] if path.is_dir() else absolute.parents
    folder = next(folder for folder in folders if folder.exists())
    with _write_errors(path), tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def _write_errors(path: Path, only: int | None = None) -> Iterator[None]:
    """Refusal of `path` in the place of an OSError, or of the one with errno `only`."""
    try:
        yield
    except OSError as error:
        if only not in (None, error.errno):
            raise
        in_cache = path.absolute().is_relative_to(cache_folder().absolute())
        fix = f"{'set CMREPRO_CACHE to' if in_cache else 'choose'} another folder"
        reason = f"cannot write {short(path, 120)}: {str(error.strerror).lower()}"
        raise ValueError(f"{reason}; {fix}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock of a folder for one run, which ends with its process; a second run is refused."""
    from filelock import FileLock, Timeout

    make_folder(folder)
    try:
        lock = FileLock(folder / ".cmrepro.lock").acquire(timeout=0)
    except Timeout:
        found = f"another run writes to {short(folder, 120)}"
        raise ValueError(f"{found}; wait for its end, or choose another folder") from None
    with lock:
        yield


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Temporary file beside `path` that becomes `path` if the block ends without an error."""
    path = Path(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _write_errors(path, only=errno.ENOSPC):
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def short(name: object, length: int = 60) -> str:
    """A name for a message, its middle cut out if it is long."""
    text, half = str(name), length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


@contextlib.contextmanager
def one_line_errors(path: object, fault: str, advice: str = "") -> Iterator[None]:
    """ValueError in the place of any error of a block that reads a file.

    Damaged files make readers raise nearly everything, in any number of lines.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(short(path, 80)):
            raise
        text = f"{type(error).__name__}: {error}".partition("\n")[0].removeprefix("ValueError: ")
        start, end = f"{short(path, 80)} {fault}: ", f"; {advice}" * bool(advice)
        raise ValueError(start + short(text, 290 - len(start + end)) + end) from error


def item_digests(items: Iterable[Any]) -> bytes:
    """SHA-256 digests of arrays' values in C order, 32 bytes each."""
    return b"".join(hashlib.sha256(item.tobytes()).digest() for item in items)


def items_sha256(items: Iterable[Any]) -> str:
    """Hexadecimal SHA-256 of arrays' digests, so that each process hashes its own images."""
    return hashlib.sha256(item_digests(items)).hexdigest()


def sha256(*paths: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def first_bytes(path: Path) -> bytes:
    """First 64 bytes of a file; refuses what often lies in the place of a download."""
    if not path.is_file():
        raise ValueError(f"{short(path, 80)} is no file; check the path")
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{short(path, 80)} is empty; copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{short(path, 80)} is a git-lfs pointer, not the file itself; run 'git lfs pull'"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError(
            f"{short(path, 80)} is a web page (HTML or XML); download the file itself"
        )
    return start


def require_checksum(path: Path, checksum: str, advice: str) -> None:
    """Refuse a file of another checksum: "sha256:…", "md5:…", "sha256-prefix:…" (its start)."""
    kind, expected = checksum.split(":")
    algorithm = kind.removesuffix("-prefix")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if (found if kind == algorithm else found[: len(expected)]) != expected:
        raise ValueError(f"{path} has {algorithm} {found}, expected {expected}{advice}")


def expected_checksum(path: Path, checksum: str) -> str | None:
    """Checksum of a download; for `RECORDED` that of the first one in PATH.sha256, else None."""
    if checksum != RECORDED:
        return checksum
    record = path.with_name(path.name + ".sha256")
    return f"sha256:{record.read_text()[:64]}" if record.exists() else None


def cache_folder() -> Path:
    """Folder of downloads: `CMREPRO_CACHE`, or the user's cache folder."""
    if folder := os.environ.get("CMREPRO_CACHE"):
        return Path(os.path.expanduser(folder))
    import platformdirs

    return Path(platformdirs.user_cache_dir("cmrepro"))


def download(
    url: str, path: Path, checksum: str, read: Callable[[Path], object] | None = None
) -> Path:
    """Fetch `url` to `path`, continuing an interrupted download in PATH.part; gives `path`.

    A file that is already there is used after its checksum. For the checksum `RECORDED`, the
    SHA-256 of the first file that `read` reads without an error is recorded, and later files must
    have it. The environment variable `CMREPRO_MIRROR`, an address or a folder, stands in the place
    of the host of `url`.
    """
    if path.exists():
        _check(path, path, checksum, read)
        return path
    from filelock import FileLock

    if mirror := os.environ.get("CMREPRO_MIRROR"):
        url = mirror.rstrip("/") + urlsplit(url).path
    part, lock = (path.with_name(path.name + suffix) for suffix in (".part", ".lock"))
    make_folder(path.parent)
    try:
        with FileLock(lock):
            while not path.exists():  # another process may have fetched it
                continued = part.exists()
                _fetch(url, part)
                try:
                    _check(part, path, checksum, read)
                except ValueError as error:
                    part.unlink()
                    if not continued:  # else the start may have been of another file
                        fault = short(str(error).replace(str(part), "it"), 120)
                        got = f"{short(url, 90)} gives a wrong file, which was removed: {fault}"
                        raise DownloadError(f"{got}; put the right one at {path}") from error
                else:
                    os.replace(part, path)
    except OSError as error:  # the network's errors are among them
        advice = f"run it again to continue, or put the file at {path} by hand"
        if error.errno == errno.ENOSPC:
            advice = "no space left: free some, or set CMREPRO_CACHE to a folder on another disk"
        reason = f"cannot download {url} ({type(error).__name__}: {short(error, 80)})"
        raise DownloadError(f"{reason}; {advice}") from error
    return path


def _check(
    arrived: Path, path: Path, checksum: str, read: Callable[[Path], object] | None
) -> None:
    """Compare a download for `path` with its checksum, or record that of the first right one."""
    if expected := expected_checksum(path, checksum):
        advice = "; delete it and download again"
        if checksum == RECORDED:
            advice = f", recorded in {path.name}.sha256; delete the wrong one of the two"
        require_checksum(arrived, expected, advice)
        return
    if read:
        read(arrived)
    with atomic_path(path.with_name(path.name + ".sha256")) as temporary:
        temporary.write_text(f"{sha256(arrived)}  {path.name}\n")  # as `sha256sum` does


def _fetch(url: str, part: Path) -> None:
    """Fetch `url` to `part`, and continue it a few times where the connection breaks."""
    if "://" not in url:
        shutil.copyfile(url, part)
        return
    import requests

    for wait_s in (*WAITS_S, None):
        try:
            return _receive(url, part)
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code < 500
            if wait_s is None or refused:
                raise
            time.sleep(wait_s)


def _receive(url: str, part: Path) -> None:
    import requests

    from cmrepro.progress import progress_bar

    have = part.stat().st_size if part.exists() else 0
    # The bytes of the file itself: its checksum and its ranges do not know of compression.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # nothing after the part, which is checked
            return
        response.raise_for_status()
        resumed = response.status_code == 206
        initial = have * resumed
        length = int(response.headers.get("Content-Length", 0))
        sizes: dict[str, Any] = {"initial": initial, "total": initial + length}
        with (
            open(part, "ab" if resumed else "wb") as file,
            progress_bar(desc=part.stem, unit="B", unit_scale=True, **sizes) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
