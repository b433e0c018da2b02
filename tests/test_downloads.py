"""Resumable checked downloads, from a local server that counts what it sends; CIFAR-10."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import io
import pathlib
import tarfile
import threading
import time
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
    status = 200
    surplus = 0  # bytes of a Content-Length that is too large
    cut: int | None = None  # break off after so many bytes, once
    stall_s = 0.0  # seconds before the last bytes of a cut answer
    redirects = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: list[tuple[int, int]] = []  # first byte and number of bytes of each answer
        self.url = f"http://127.0.0.1:{self.server_port}/folder/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        if server.redirects and self.path != "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            return self.end_headers()
        start = 0
        if requested and server.has_ranges:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
        body = server.payload[start:]
        announced = len(body)
        body, cut, server.cut = body[: server.cut], server.cut, None
        server.sent.append((start, len(body)))  # before a client can end at the headers
        self.send_response((206 if start else server.status) if announced else 416)
        self.send_header("Content-Length", str(announced + server.surplus))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that no longer waits
            self.wfile.write(body)
            if cut:
                time.sleep(server.stall_s)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)  # the real ones exceed the payload
        monkeypatch.setattr(files, "WAITS_S", (0, 0))
        monkeypatch.setattr(files, "TIMEOUT_S", 1)
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


def read(path: pathlib.Path) -> None:
    """What a reader of the payload's format refuses."""
    if path.read_bytes() != PAYLOAD:
        raise ValueError(f"{path} is cut off; download it again")


PAGE = b"<!DOCTYPE html><title>Log in</title>" * 10_000
REMOVED = "gives a wrong file, which was removed: it "
FAULTS: dict[str, tuple[dict[str, Any], bytes | None, str | None, int]] = {
    # of the server; an earlier part; part of the error, None where the file arrives; answers
    "refused": ({"status": 403}, None, "403 Client Error: Forbidden", 1),
    "down": ({"status": 503}, PAYLOAD[:9], None, 1),
    "login page": ({"payload": PAGE, "has_ranges": False}, PAYLOAD[:9], f"{REMOVED}is cut off", 2),
    "short body": ({"payload": b"{}"}, None, f"{REMOVED}is cut off", 1),
    "wrong length": ({"surplus": 1}, None, "ChunkedEncodingError", 3),
    "dies": ({"cut": 300_000}, None, None, 2),
    "dies without ranges": ({"cut": 300_000, "has_ranges": False}, None, None, 2),
    "stalls": ({"cut": 300_000, "stall_s": 3}, None, None, 2),
    "redirect": ({"redirects": True}, PAYLOAD[:9], None, 1),
    "part of a page": ({}, PAGE[:1000], None, 2),
    "part too long": ({}, PAYLOAD + b"x", None, 2),
    "part without ranges": ({"has_ranges": False}, b"x" * 9, None, 1),
    "whole part": ({}, PAYLOAD, None, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_with_the_file_or_one_line_and_no_checksum(
    server: Server, path: pathlib.Path, fault: str
) -> None:
    settings, part, message, num_answers = FAULTS[fault]
    vars(server).update(settings)
    if part:
        path.with_name("file.bin.part").write_bytes(part)

    def fetch() -> bytes:
        return download(server.url, path, RECORDED, read).read_bytes()

    if message:
        with pytest.raises(DownloadError) as caught:
            fetch()
        text = str(caught.value)
        assert message in text and str(path) in text and "\n" not in text
        assert not any(path.with_name(f"file.bin{x}").exists() for x in ("", ".sha256"))
        assert len(server.sent) == num_answers
        vars(server).update({key: getattr(Server, key) for key in settings})
    assert fetch() == PAYLOAD
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    assert path.with_name("file.bin.sha256").read_text() == f"{digest}  file.bin\n"
    if message is None:
        assert len(server.sent) == num_answers
    if fault == "dies":
        [(_, _), (have, size)] = server.sent
        assert have > 300_000 - files.CHUNK_BYTES and have + size == len(PAYLOAD)


def test_a_damaged_file_put_there_by_hand_is_not_recorded(path: pathlib.Path) -> None:
    """The right one is used then; a later one that differs is refused."""
    for content in (PAYLOAD[:-1], b"{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} .*download (it )?again"):
            download("http://unused", path, RECORDED, read)
    path.write_bytes(PAYLOAD)
    download("http://unused", path, RECORDED, read)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"expected .* recorded in file.bin.sha256; dele"):
        download("http://unused", path, RECORDED, read)


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_mirror_replaces_the_host(
    server: Server, path: pathlib.Path, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = path.parent / "mirror"
    (mirror / "folder").mkdir(parents=True)
    (mirror / "folder" / "file.bin").write_bytes(PAYLOAD)
    address = server.url.removesuffix("/folder/file.bin")
    monkeypatch.setenv("CMREPRO_MIRROR", str(mirror) if is_folder else address)
    official = "https://official.example/folder/file.bin"
    assert download(official, path, MD5).read_bytes() == PAYLOAD
    assert len(server.sent) == (not is_folder)


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
