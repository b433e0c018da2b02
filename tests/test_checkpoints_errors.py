"""Bad input to `cmrepro checkpoints …`: one line on stderr, exit code 2, nothing left behind."""

import dataclasses
import errno
import hashlib
import pathlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import golden
import pytest
import torch
from official_files import release, use_small_networks, weights_of, write_flax, write_torch
from test_downloads import Server

from cmrepro import files
from cmrepro.checkpoints import diffusers_folder, io
from cmrepro.checkpoints.io import load_model
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
from cmrepro.cli import main as cli

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
) -> Run:
    """Run `cmrepro checkpoints …`; its one line on stderr."""

    def run(*arguments: Any, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["cmrepro", "checkpoints", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        line, *others = reversed(output.err.splitlines())
        assert all("B/s]" in other for other in others if other)  # a progress bar
        assert (caught.value.code, output.out) == (code, "")
        assert line.startswith("cmrepro: ")
        assert not (tmp_path / "out").exists()
        return line.removeprefix("cmrepro: ")

    return run


@pytest.fixture
def out(tmp_path: pathlib.Path) -> tuple[str, pathlib.Path]:
    return ("--out", tmp_path / "out")


def test_a_truncated_flax_file(tmp_path: pathlib.Path, refused: Run, out: Any) -> None:
    path = tmp_path / "checkpoint_80"
    whole = golden.path("ncsnpp/b/checkpoint_74").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    line = refused("convert", path, *out)
    assert line.startswith(f"{path} is cut off: its {len(whole) // 2} bytes end within the tree")
    assert line.endswith("copy or download it again")
    assert refused("inspect", path) == line


def test_a_truncated_torch_file(tmp_path: pathlib.Path, refused: Run, out: Any) -> None:
    path = write_torch(tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:-100])
    for command in (("convert", path, *out), ("inspect", path)):
        assert f"{path} is cut off" in refused(*command)


NAMED = ("--network", "tiny")


@pytest.mark.parametrize(
    ("without", "extra", "options", "said"),
    [
        (["out.2.bias"], {}, NAMED, "it lacks parameter out.2.bias; use"),
        ([], {"b": 1, "a": 1}, NAMED, "it has a surplus parameter a (and b); use"),
        ([], {"out.2.bias": 4}, NAMED, "it has out.2.bias (4,), not (3,); use"),
        (["out.2.bias"], {"a": 1}, NAMED, "lacks parameter out.2.bias, it has a surplus"),
        (["out.2.bias"], {}, (), "the nearest is 'tiny', but it lacks parameter out.2.bias"),
        ([], {"a": 1}, (), "the nearest is 'tiny', but it has a surplus parameter a; name"),
    ],
)
def test_parameters_that_do_not_fit_are_named(
    without: list[str],
    extra: dict[str, int],
    options: tuple[str, ...],
    said: str,
    tmp_path: pathlib.Path,
    refused: Run,
    out: Any,
) -> None:
    weights = {name: w for name, w in weights_of("tiny").items() if name not in without}
    path = tmp_path / "a.pt"
    torch.save(weights | {name: torch.zeros(n) for name, n in extra.items()}, path)
    line = refused("convert", path, *options, *out)
    assert str(path) in line and said in line


@pytest.mark.parametrize("options", [(), ("--network", "tiny-flax")])
def test_parameters_of_a_flax_file_that_do_not_fit_are_named(
    options: tuple[str, ...], tmp_path: pathlib.Path, refused: Run, out: Any
) -> None:
    path = write_flax(tmp_path / "checkpoint_80", params_ema={"Conv_9": {"bias": 1}})
    line = refused("convert", path, *options, *out)
    assert f"{path} is not a flax checkpoint" in line and "Conv_9/bias is a int" in line
    tree = {"Conv_9": {"bias": torch.zeros(3).numpy()}}
    path = write_flax(tmp_path / "checkpoint_80", params_ema=tree)
    line = refused("convert", path, *options, *out)
    assert str(path) in line
    assert "Conv_9/bias" in line and "surplus" in line
    assert "GroupNorm_0/bias" in line or "GaussianFourierProjection_0/W" in line  # lacks


def test_a_wrong_network(tmp_path: pathlib.Path, refused: Run, out: Any) -> None:
    torch_file, flax_file = write_torch(tmp_path / "a.pt"), write_flax(tmp_path / "b")
    line = refused("convert", torch_file, "--network", "deep", *out)
    assert f"{torch_file} is not of network 'deep': it lacks parameter input_blocks.2" in line
    line = refused("convert", torch_file, "--network", "tini", *out)
    assert "unknown network 'tini': did you mean 'tiny'?" in line
    line = refused("convert", flax_file, "--network", "tiny", *out)
    assert "is a flax checkpoint, got network 'tiny'; allowed are tiny-flax" in line


def test_what_the_file_does_not_say(tmp_path: pathlib.Path, refused: Run, out: Any) -> None:
    line = refused("convert", write_torch(tmp_path / "a.pt"), *out)
    assert "give --parameterization boundary or edm" in line


@pytest.mark.parametrize("content", [b"", b"a text, not weights"])
def test_another_format(content: bytes, tmp_path: pathlib.Path, refused: Run, out: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for command in (("convert", path, *out), ("inspect", path)):
        line = refused(*command)
        assert line.startswith(f"{path} is of no known format; allowed are safetensors, a PyTorch")


def test_other_formats_are_not_sampled_and_say_what_to_do(tmp_path: pathlib.Path) -> None:
    for path in (write_torch(tmp_path / "a.pt"), write_flax(tmp_path / "b")):
        with pytest.raises(ValueError, match="by 'cmrepro checkpoints convert'"):
            load_model(path)
    with pytest.raises(ValueError, match=r"is a folder; .* 'cmrepro checkpoints convert'"):
        load_model(tmp_path)


NAME = "edm-cifar10"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the archive of test_downloads.py in the place of `NAME`."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 14)
        replace(monkeypatch, url=f"http://127.0.0.1:{server.server_port}/edm_cifar10_ema")
        yield server
        server.shutdown()


def replace(monkeypatch: pytest.MonkeyPatch, **changes: str) -> ReleasedCheckpoint:
    entry = dataclasses.replace(released_checkpoints()[NAME], **changes)
    monkeypatch.setitem(released_checkpoints(), NAME, entry)
    return entry


@pytest.mark.parametrize("command", ["fetch", "convert"])
def test_a_checksum_that_does_not_match(
    command: str, server: Server, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(monkeypatch, checksum=f"sha256:{'0' * 64}")
    line = refused(command, NAME)
    found = hashlib.sha256(server.payload).hexdigest()
    assert f"has sha256 {found}, expected {'0' * 64}" in line
    assert not entry.downloaded.exists()


def test_an_interrupted_download_goes_on(
    server: Server, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut = 300_000
    assert "run it again to go on" in refused("fetch", NAME, code=1)
    monkeypatch.setattr(sys, "argv", ["cmrepro", "checkpoints", "fetch", NAME])
    cli.main()
    assert released_checkpoints()[NAME].downloaded.read_bytes() == server.payload
    (_, first), (start, rest) = server.sent
    assert first == 300_000 and 0 < start <= 300_000 and start + rest == len(server.payload)


@pytest.mark.parametrize("command", ["fetch", "convert"])
def test_an_address_that_cannot_be_reached(
    command: str, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:  # a port on which nobody answers
        port = unused.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    entry = replace(monkeypatch, url=f"http://127.0.0.1:{port}/a")
    line = refused(command, NAME, code=1)
    assert line.startswith(f"cannot download http://127.0.0.1:{port}/a to ")
    assert line.endswith(f"put the file at {entry.downloaded} by hand")
    # And that is enough: a file put there is converted without any address.
    assert released_checkpoints()[NAME].url == entry.url
    release(monkeypatch, NAME)
    monkeypatch.setattr(sys, "argv", ["cmrepro", "checkpoints", "convert", NAME])
    cli.main()
    assert load_model(NAME).info.origin["name"] == NAME


class FullDisk:
    """Stands for `safetensors.torch.save_file` on a disk without space."""

    def __call__(self, weights: Any, path: pathlib.Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("to", ["safetensors", "diffusers"])
def test_no_space_for_a_converted_checkpoint(
    to: str, tmp_path: pathlib.Path, refused: Run, out: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_torch(tmp_path / "a.pt")
    for module in (io, diffusers_folder):
        monkeypatch.setattr(module, "save_file", FullDisk())
    line = refused("convert", source, "--parameterization", "edm", "--to", to, *out)
    assert line.lower().startswith(f"cannot write {tmp_path}/out") and "o space left" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_unknown_names(refused: Run, tmp_path: pathlib.Path, out: Any) -> None:
    assert "did you mean 'imagenet64-cd-l2'" in refused("fetch", "imagenet64-cd-l3")
    assert "did you mean 'imagenet64-cd-l2'" in refused("convert", "imagenet64-cd-l3", *out)
    assert "no such file either" in refused("inspect", tmp_path / "nothing")
    line = refused("inspect", "imagenet64-cd-l2")
    assert line.endswith("run 'cmrepro checkpoints fetch imagenet64-cd-l2'")
