"""The released checkpoints: the registry against the paper's data, and their download."""

import builtins
import dataclasses
import errno
import hashlib
import pathlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from artifacts import ARTIFACTS
from test_downloads import Server

from cmrepro import files
from cmrepro.checkpoints.io import find_checkpoint
from cmrepro.checkpoints.registry import (
    ReleasedCheckpoint,
    fetch_checkpoint,
    released_checkpoints,
)
from cmrepro.networks.presets import PRESETS
from cmrepro.paper import deviations
from cmrepro.training.recipes import load_recipe, recipe_names
from cmrepro.training.schedules import two_step_time

RELEASED = released_checkpoints()
NAME = "edm-cifar10"


def test_addresses_and_sizes_are_those_of_the_list_of_artifacts() -> None:
    kinds = {"checkpoint, flax": "flax", "checkpoint, PyTorch state dict": "torch"}
    published = {
        url: (kinds[row["kind"]], row["bytes_approx"], row["checksum"])
        for url, row in ARTIFACTS.items()
        if row["kind"] in kinds
    }
    ours = {e.url: (e.format, str(e.bytes_approx), "") for e in RELEASED.values()}
    assert ours == published  # their checksums are not published either
    assert Counter(e.format for e in RELEASED.values()) == {"torch": 12, "flax": 10}


def test_each_names_a_network_of_ours() -> None:
    for entry in RELEASED.values():
        assert entry.network in PRESETS
        assert entry.network.startswith("ncsnpp" if entry.format == "flax" else "adm")


@pytest.mark.parametrize("name", RELEASED)
def test_a_name_says_what_the_entry_says(name: str) -> None:
    entry = RELEASED[name]
    parts = (entry.dataset.removesuffix("-train"), entry.method, entry.distance)
    if entry.method == "edm":
        assert (name, entry.distance) == (f"edm-{parts[0]}", None)
        assert entry.parameterization == "edm"
    else:
        method = entry.method.removesuffix("-stopgrad")
        suffix = entry.method.removeprefix(method)
        assert name == f"{parts[0]}-{method}-{entry.distance}{suffix}"
        assert entry.parameterization == "boundary"


@pytest.mark.parametrize("name", [e.name for e in RELEASED.values() if e.recipe])
def test_recipes_agree(name: str) -> None:
    """In what both say, the second sampling time among it."""
    entry = RELEASED[name]
    recipe = load_recipe(str(entry.recipe), "released")
    for field in ("method", "dataset", "network", "sigma_min", "sigma_max"):
        assert getattr(entry, field) == getattr(recipe, field), field
    # The release says "lpips" of both of its forms (deviation `lpips-implementation`).
    assert entry.distance == str(recipe.distance).removesuffix("-average")
    assert entry.two_step_time == two_step_time(recipe)


def test_every_recipe_of_table_3_has_its_checkpoint() -> None:
    wanted = {name for name in recipe_names() if not name.startswith("demo-")}
    assert {e.recipe for e in RELEASED.values()} - {None} == wanted


def test_two_step_points_are_those_of_the_ledger() -> None:
    [deviation] = [d for d in deviations() if d.id == "two-step-times"]
    named = {
        (int(index), int(scales))
        for indices, scales in re.findall(r"((?:\d+ and )?\d+) of (\d+)", deviation.released)
        for index in indices.split(" and ")
    }
    assert len(named) == 7
    ours = {(e.two_step_index, e.num_scales) for e in RELEASED.values()} - {(None, None)}
    assert ours == named


@pytest.fixture
def server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the archive of test_downloads.py in the place of `NAME`."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)
        address(monkeypatch, f"http://127.0.0.1:{server.server_port}/edm_cifar10_ema")
        yield server
        server.shutdown()


def address(monkeypatch: pytest.MonkeyPatch, url: str, **changes: str) -> ReleasedCheckpoint:
    entry = dataclasses.replace(RELEASED[NAME], url=url, **changes)
    monkeypatch.setitem(released_checkpoints(), NAME, entry)
    return entry


def error_of_fetch() -> str:
    with pytest.raises(ValueError) as caught:
        fetch_checkpoint(NAME)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_checksum_is_recorded(server: Server, tmp_path: pathlib.Path) -> None:
    path = fetch_checkpoint(NAME)
    assert path == tmp_path / "cache" / "checkpoints" / "edm-cifar10.msgpack"
    assert path.read_bytes() == server.payload
    record = path.with_name(path.name + ".sha256")
    expected = f"{hashlib.sha256(server.payload).hexdigest()}  {path.name}\n"
    assert record.read_text() == expected  # what sha256sum writes and checks
    assert fetch_checkpoint(NAME) == path
    assert len(server.sent) == 1


def test_another_file_than_the_first_is_refused(server: Server) -> None:
    path = fetch_checkpoint(NAME)
    path.unlink()
    server.payload = b"another" * 1000
    message = error_of_fetch()
    assert f"expected {hashlib.sha256(Server.payload).hexdigest()} as recorded in" in message
    assert f"{path}.sha256; delete it and download again" in message
    assert not path.exists()


def test_a_damaged_file_in_the_cache_is_refused(server: Server) -> None:
    path = fetch_checkpoint(NAME)
    path.write_bytes(server.payload[:-1])
    assert f"{path} has sha256" in error_of_fetch()


def test_a_published_checksum_decides(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = released_checkpoints()[NAME].url
    address(monkeypatch, url, checksum=f"sha256:{'0' * 64}")
    assert f"expected {'0' * 64}; delete it" in error_of_fetch()
    address(monkeypatch, url, checksum=f"sha256:{hashlib.sha256(server.payload).hexdigest()}")
    assert fetch_checkpoint(NAME).read_bytes() == server.payload


def test_a_file_put_there_by_hand_is_used(server: Server) -> None:
    entry = released_checkpoints()[NAME]
    entry.downloaded.parent.mkdir(parents=True)
    entry.downloaded.write_bytes(b"by hand")
    assert fetch_checkpoint(NAME).read_bytes() == b"by hand"
    assert server.sent == []


def test_an_interrupted_download_goes_on(server: Server) -> None:
    server.cut = 300_000
    assert "run it again to go on" in error_of_fetch()
    assert not released_checkpoints()[NAME].downloaded.exists()
    assert fetch_checkpoint(NAME).read_bytes() == server.payload
    (_, first), (start, rest) = server.sent
    assert first == 300_000
    assert start > 0
    assert start + rest == len(server.payload)


def test_a_full_disk_is_a_one_line_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path: Any, mode: str = "r", *rest: Any) -> Any:
        file = builtins.open(path, mode, *rest)  # noqa: SIM115
        return Full(file) if mode in ("ab", "wb") else file

    monkeypatch.setattr(files, "open", full, raising=False)
    message = error_of_fetch()
    part = released_checkpoints()[NAME].downloaded.with_suffix(".msgpack.part")
    assert f"no space left for {part}; free some, or set CMREPRO_CACHE" in message
    monkeypatch.undo()


def test_an_unreachable_address_says_where_to_put_the_file(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:  # a port on which nobody answers
        port = unused.getsockname()[1]
    entry = address(monkeypatch, f"http://127.0.0.1:{port}/a")
    assert f"put the file at {entry.downloaded} by hand" in error_of_fetch()


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'imagenet64-cd-l2'"):
        fetch_checkpoint("imagenet64-cd-l3")
    with pytest.raises(ValueError, match=r"did you mean 'imagenet64-cd-l2'.*checkpoints list"):
        find_checkpoint("imagenet64-cd-l3")


def test_a_name_that_is_not_converted_yet_says_the_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="run 'cmrepro checkpoints convert edm-cifar10'"):
        find_checkpoint(NAME)
    released_checkpoints()[NAME].converted.parent.mkdir()
    released_checkpoints()[NAME].converted.write_bytes(b"")
    assert find_checkpoint(NAME) == tmp_path / "checkpoints" / "edm-cifar10.safetensors"
