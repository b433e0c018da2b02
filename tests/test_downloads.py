"""The download of CIFAR-10's archive, from a server of our own that counts what it sends."""

import concurrent.futures
import hashlib
import http.server
import io
import pathlib
import socket
import tarfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cmrepro import files
from cmrepro.data import ImageDataset, load_cifar10, load_dataset, named

RECORDS = np.random.default_rng(1).integers(0, 256, (6, 40, 3073), np.uint8)  # incompressible
RECORDS[..., 0] %= 10


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for i, records in enumerate(RECORDS):
            name = "test_batch.bin" if i == 5 else f"data_batch_{i + 1}.bin"
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.nbytes
            tar.addfile(member, io.BytesIO(records.tobytes()))
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    payload = archive()
    has_ranges = True
    cut: int | None = None  # break off after so many bytes, once
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: list[tuple[int, int]] = []  # first byte and number of bytes of each answer


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        start = (
            int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.has_ranges else 0
        )
        body, status = server.payload[start:], 206 if start else server.status
        if not body:
            body, status = b"", 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body, server.cut = body[: server.cut], None
        server.sent.append((start, len(body)))
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
        address = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(named, "CIFAR10_URL", address)
        checksum = f"md5:{hashlib.md5(server.payload).hexdigest()}"
        monkeypatch.setattr(named, "CIFAR10_CHECKSUM", checksum)
        monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)  # the real ones exceed this archive
        yield server
        server.shutdown()


@pytest.fixture
def final(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cache" / "cifar-10-binary.tar.gz"


@pytest.fixture
def part(final: pathlib.Path) -> pathlib.Path:
    final.parent.mkdir()
    return final.with_name(final.name + ".part")


def assert_is_train(dataset: ImageDataset) -> None:
    records = RECORDS[:5].reshape(-1, 3073)
    assert dataset.name == "cifar10-train"
    np.testing.assert_array_equal(dataset.labels, records[:, 0])
    for channel in range(3):  # red, green, blue planes, each row by row
        plane = records[:, 1 + 1024 * channel :][:, :1024].reshape(-1, 32, 32)
        np.testing.assert_array_equal(dataset.images[..., channel], plane)


def fetched(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies there but for the locks, which stay."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_cifar10_is_downloaded_once(server: Server, final: pathlib.Path) -> None:
    assert_is_train(load_dataset("cifar10-train"))
    test = load_dataset("cifar10-test")
    np.testing.assert_array_equal(test.labels, RECORDS[5, :, 0])
    assert server.sent == [(0, len(server.payload))]
    assert fetched(final.parent) == [final]


def test_those_that_need_it_at_once_download_it_once(server: Server, final: pathlib.Path) -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads:  # the lock is one of open files
        for dataset in threads.map(load_cifar10, ["train"] * 4):
            assert_is_train(dataset)
    assert server.sent == [(0, len(server.payload))]
    assert fetched(final.parent) == [final]


def test_a_file_put_there_by_hand_is_used(server: Server, part: Any, final: pathlib.Path) -> None:
    final.write_bytes(server.payload)
    assert_is_train(load_cifar10("train"))
    assert server.sent == []


def test_an_interrupted_download_goes_on(server: Server, final: pathlib.Path) -> None:
    server.cut = 300_000
    with pytest.raises(
        ValueError, match=f"cannot download .*run it again.*put the file at {final}"
    ):
        load_cifar10("train")
    have = final.with_name(final.name + ".part").stat().st_size
    assert 300_000 - files.CHUNK_BYTES < have <= 300_000  # at most the last piece is lost
    assert not final.exists()
    assert_is_train(load_cifar10("train"))
    assert server.sent == [(0, 300_000), (have, len(server.payload) - have)]


def test_a_server_without_ranges_starts_again(server: Server, part: pathlib.Path) -> None:
    server.has_ranges = False
    part.write_bytes(b"x" * 1000)
    assert_is_train(load_cifar10("train"))


def test_a_complete_part_is_finished(server: Server, part: pathlib.Path) -> None:
    part.write_bytes(server.payload)
    assert_is_train(load_cifar10("train"))
    assert server.sent == [(len(server.payload), 0)]
    assert not part.exists()


def test_a_wrong_checksum_leaves_nothing_under_the_final_name(
    server: Server, part: pathlib.Path, final: pathlib.Path
) -> None:
    part.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=f"{part} has md5 .*expected .*delete it") as caught:
        load_cifar10("train")
    assert "\n" not in str(caught.value)
    assert not final.exists()
    part.unlink()
    assert_is_train(load_cifar10("train"))


def test_a_wrong_file_put_there_by_hand_is_refused(
    server: Server, part: pathlib.Path, final: pathlib.Path
) -> None:
    final.write_bytes(server.payload[:-1])
    with pytest.raises(ValueError, match=f"{final} has md5 "):
        load_cifar10("train")


def test_a_page_that_is_gone_leaves_nothing(server: Server, final: pathlib.Path) -> None:
    server.status = 404
    with pytest.raises(ValueError, match=f"HTTPError.*put the file at {final} by hand"):
        load_cifar10("train")
    assert fetched(final.parent) == []


def test_an_unreachable_address_says_where_to_put_the_file(
    server: Server, final: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:  # a port on which nobody answers
        port = unused.getsockname()[1]
    monkeypatch.setattr(named, "CIFAR10_URL", f"http://127.0.0.1:{port}/a")
    with pytest.raises(ValueError, match=f"ConnectionError.*put the file at {final} by hand") as c:
        load_cifar10("train")
    assert "\n" not in str(c.value)


def test_a_cache_that_cannot_be_written_is_a_one_line_error(
    server: Server, final: pathlib.Path
) -> None:
    final.parent.write_text("a file")
    with pytest.raises(ValueError, match="cannot download") as caught:
        load_cifar10("train")
    assert "\n" not in str(caught.value)
