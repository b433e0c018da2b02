"""Resumable checked downloads, from a local server that counts what it sends; CIFAR-10."""

import concurrent.futures
import hashlib
import http.server
import io
import pathlib
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cmrepro import files
from cmrepro.data import opening
from cmrepro.files import RECORDED, DownloadError, download

PAYLOAD = np.random.default_rng(0).bytes(500_000)
MD5 = f"md5:{hashlib.md5(PAYLOAD).hexdigest()}"


class Server(http.server.ThreadingHTTPServer):
    payload = PAYLOAD
    has_ranges = True
    cut: int | None = None  # break off after so many bytes, once
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: list[tuple[int, int]] = []  # first byte and number of bytes of each answer
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        start = 0
        if requested and server.has_ranges:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
        body = server.payload[start:]
        self.send_response((206 if start else server.status) if body else 416)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body, server.cut = body[: server.cut], None
        server.sent.append((start, len(body)))
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)  # the real ones exceed the payload
        yield server
        server.shutdown()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "file.bin"


def test_processes_that_need_a_file_at_once_download_it_once(
    server: Server, path: pathlib.Path
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads:  # the lock is one of open files
        list(threads.map(lambda _: download(server.url, path, MD5), range(4)))
    assert path.read_bytes() == PAYLOAD
    assert server.sent == [(0, len(PAYLOAD))]
    assert sorted(file.name for file in path.parent.iterdir()) == ["file.bin", "file.bin.lock"]


def test_a_file_put_there_by_hand_is_used_after_its_checksum(
    server: Server, path: pathlib.Path
) -> None:
    path.write_bytes(PAYLOAD)
    download(server.url, path, MD5)
    path.write_bytes(PAYLOAD[:-1])
    with pytest.raises(ValueError, match=f"{path} has md5 "):
        download(server.url, path, MD5)
    assert server.sent == []


def test_an_interrupted_download_continues(server: Server, path: pathlib.Path) -> None:
    server.cut = 300_000
    message = f"cannot download .*run it again.*put the file at {path} by hand"
    with pytest.raises(DownloadError, match=message):
        download(server.url, path, MD5)
    have = path.with_name("file.bin.part").stat().st_size
    assert 300_000 - files.CHUNK_BYTES < have <= 300_000  # at most the last chunk is lost
    assert not path.exists()
    assert download(server.url, path, MD5).read_bytes() == PAYLOAD
    assert server.sent == [(0, 300_000), (have, len(PAYLOAD) - have)]


@pytest.mark.parametrize(("has_ranges", "have"), [(False, b"x" * 1000), (True, PAYLOAD)])
def test_a_part_is_replaced_without_ranges_and_finished_where_it_is_whole(
    server: Server, path: pathlib.Path, has_ranges: bool, have: bytes
) -> None:
    server.has_ranges = has_ranges
    part = path.with_name("file.bin.part")
    part.write_bytes(have)
    assert download(server.url, path, MD5).read_bytes() == PAYLOAD
    assert not part.exists()


def test_a_wrong_checksum_leaves_nothing_under_the_final_name(
    server: Server, path: pathlib.Path
) -> None:
    part = path.with_name("file.bin.part")
    part.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=f"{part} has md5 .*expected .*delete it"):
        download(server.url, path, MD5)
    assert not path.exists()


def test_the_first_checksum_is_recorded_where_none_is_published(
    server: Server, path: pathlib.Path
) -> None:
    download(server.url, path, RECORDED)
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    assert path.with_name("file.bin.sha256").read_text() == f"{digest}  file.bin\n"
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"expected {digest} as recorded in .*delete it"):
        download(server.url, path, RECORDED)


def test_an_unreachable_address_says_where_to_put_the_file(
    server: Server, path: pathlib.Path
) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match=f"HTTPError.*put the file at {path} by hand"):
        download(server.url, path, MD5)
    path.with_name("blocked").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write .*blocked"):
        download(server.url, path.with_name("blocked") / "a", MD5)


def test_cifar10_is_read_from_its_binary_archive(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one label and planes of red, green and blue, each row by row."""
    records = np.random.default_rng(1).integers(0, 256, (6, 4, 3073), np.uint8)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for i, batch in enumerate(records):
            name = "test_batch.bin" if i == 5 else f"data_batch_{i + 1}.bin"
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = batch.nbytes
            tar.addfile(member, io.BytesIO(batch.tobytes()))
    server.payload = archive.getvalue()
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "CIFAR10_URL", server.url)
    checksum = f"md5:{hashlib.md5(server.payload).hexdigest()}"
    monkeypatch.setattr(opening, "CIFAR10_CHECKSUM", checksum)
    for split, batches in (("train", records[:5]), ("test", records[5:])):
        dataset, rows = opening.load_cifar10(split), batches.reshape(-1, 3073)
        assert dataset.name == f"cifar10-{split}"
        np.testing.assert_array_equal(dataset.labels, rows[:, 0])
        for channel in range(3):
            plane = rows[:, 1 + 1024 * channel :][:, :1024].reshape(-1, 32, 32)
            np.testing.assert_array_equal(dataset.images[..., channel], plane)
    assert len(server.sent) == 1
