"""Files that would run code when they are opened carelessly: no reader runs it."""

import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from official_files import use_small_networks, weights_of

from cmrepro.checkpoints.contents import describe
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers_folder import OLD_WEIGHTS, unet_config
from cmrepro.checkpoints.flax import read_flax_checkpoint
from cmrepro.checkpoints.io import load_model, read_info
from cmrepro.checkpoints.pickles import pickle_contents
from cmrepro.checkpoints.torch_files import read_torch_file
from cmrepro.cli import main as cli

MARK = "HOSTILE_MARK"


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder that is there once the code of a file has run."""
    use_small_networks(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


class Hostile:
    """Unpickled, it makes the folder that the environment names."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ[MARK],)


def bare_pickle(path: pathlib.Path) -> pathlib.Path:
    """As NVIDIA's EDM models come."""
    path.write_bytes(pickle.dumps({"ema": Hostile()}))
    return path


def old_pickle(path: pathlib.Path) -> pathlib.Path:
    """Of the text protocol, which has no mark at its beginning."""
    path.write_bytes(pickle.dumps({"ema": Hostile()}, protocol=0))
    return path


def state_dict(path: pathlib.Path) -> pathlib.Path:
    """Good weights with an object among them."""
    torch.save({**weights_of("tiny"), "hook": Hostile()}, path)
    return path


def old_state_dict(path: pathlib.Path) -> pathlib.Path:
    """Of torch before 1.6: pickles one after the other."""
    weights = {**weights_of("tiny"), "hook": Hostile()}
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


def replaced_pickle(path: pathlib.Path) -> pathlib.Path:
    """A whole official file whose inner pickle is another."""
    good = io.BytesIO()
    torch.save(weights_of("tiny"), good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            hostile = pickle.dumps(Hostile(), protocol=2)
            new.writestr(name, hostile if name.endswith("data.pkl") else old.read(name))
    return path


def diffusers_folder(path: pathlib.Path) -> pathlib.Path:
    """With its weights in the pickled form alone."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(unet_config("tiny")))
    state_dict(path / OLD_WEIGHTS)
    return path


def flax_pickle(path: pathlib.Path) -> pathlib.Path:
    """A pickle in the place of a flax file's trees."""
    import msgpack

    content = {"step": 1, "params_ema": msgpack.ExtType(1, pickle.dumps(Hostile()))}
    path.write_bytes(msgpack.packb(content))
    return path


BUILDERS = [
    bare_pickle,
    old_pickle,
    state_dict,
    old_state_dict,
    replaced_pickle,
    diffusers_folder,
    flax_pickle,
]
READERS: dict[str, Callable[[pathlib.Path], Any]] = {
    "convert": lambda path: convert(
        path, path.with_name("x.safetensors"), network="tiny", parameterization="edm"
    ),
    "convert, guessing": lambda path: convert(path, path.with_name("x.safetensors")),
    "describe": describe,
    "load_model": load_model,
    "read_info": read_info,
    "read_flax_checkpoint": read_flax_checkpoint,
    "read_torch_file": read_torch_file,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("build", BUILDERS)
def test_no_reader_runs_the_code_of_a_file(
    build: Callable[[pathlib.Path], pathlib.Path],
    reader: str,
    mark: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    path = build(tmp_path / "model")
    if (reader, path.is_dir()) == ("read_flax_checkpoint", True):
        pytest.skip("reads files only")
    if reader == "describe" and build in (bare_pickle, old_state_dict):
        READERS[reader](path)  # tells what is in it without opening it
    else:
        with pytest.raises(ValueError) as caught:
            READERS[reader](path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert not mark.exists()
    assert not path.with_name("x.safetensors").exists()


@pytest.mark.parametrize("build", [b for b in BUILDERS if b is not flax_pickle])
def test_the_files_are_what_they_seem(
    build: Callable[[pathlib.Path], pathlib.Path], mark: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Opened without protection, they run their code: otherwise the tests above prove nothing."""
    path = build(tmp_path / "model")
    if build in (bare_pickle, old_pickle):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path / OLD_WEIGHTS if path.is_dir() else path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("command", [("checkpoints", "convert"), ("checkpoints", "inspect")])
@pytest.mark.parametrize("build", [bare_pickle, state_dict, replaced_pickle, diffusers_folder])
def test_the_command_line_runs_no_code_either(
    build: Callable[[pathlib.Path], pathlib.Path],
    command: tuple[str, ...],
    mark: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = build(tmp_path / "model")
    out = ["--out", str(tmp_path / "x")] if command[1] == "convert" else []
    monkeypatch.setattr(sys, "argv", ["cmrepro", *command, str(path), *out])
    if command[1] == "inspect" and build is bare_pickle:
        cli.main()
        assert json.loads(capsys.readouterr().out)["imports"] == ["posix.mkdir"]
    else:
        with pytest.raises(SystemExit) as caught:
            cli.main()
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count("\n") == 1 and str(path) in error
    assert not mark.exists()


def test_edm_pickles_are_refused_with_advice(tmp_path: pathlib.Path) -> None:
    path = bare_pickle(tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
    with pytest.raises(ValueError, match="a Python pickle runs whatever code") as caught:
        convert(path, tmp_path / "x.safetensors")
    assert "NVIDIA's EDM models" in str(caught.value)
    assert "cmrepro checkpoints convert edm-cifar10" in str(caught.value)


def edm_pickle(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A network with its source code, in the form of NVIDIA's `torch_utils.persistence`.

    Returns:
        The arrays in it.
    """

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        os.makedirs(os.environ[MARK], exist_ok=True)

    module = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module.__dict__[_reconstruct_persistent_obj.__name__] = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent:
        def __init__(self, class_name: str, state: dict[str, Any]) -> None:
            source = f"class {class_name}: ..."
            self.meta = {"module_src": source, "class_name": class_name, "state": state}

        def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
            return _reconstruct_persistent_obj, (self.meta,)

    arrays = {"weight": bytes(range(200)), "bias": bytes(50)}
    network = Persistent("EDMPrecond", {"model": Persistent("SongUNet", arrays)})
    path.write_bytes(pickle.dumps({"ema": network, "loss_fn": None}))
    return arrays


def test_inspect_tells_what_an_edm_pickle_names(
    mark: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    arrays = edm_pickle(path, monkeypatch)
    contents = describe(path)
    assert not mark.exists()
    assert (contents["format"], contents["network"]) == ("pickle", None)
    assert contents["bytes"] == path.stat().st_size
    assert contents["imports"] == ["torch_utils.persistence._reconstruct_persistent_obj"]
    assert contents["classes"] == ["EDMPrecond", "SongUNet"]
    assert contents["num_byte_strings"] == len(arrays)
    assert contents["byte_strings_bytes"] == sum(map(len, arrays.values()))
    assert "use the paper's own teachers instead" in contents["not opened"]
    assert json.loads(json.dumps(contents)) == contents
    pickle.loads(path.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_imports_are_found_in_every_protocol(protocol: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([Hostile(), Hostile(), zipfile.ZipFile], protocol))
    assert pickle_contents(path)["imports"] == ["posix.mkdir", "zipfile.ZipFile"]


@pytest.mark.parametrize("content", [b"\x80\x04", b"\x80\x04\xff", b"\x80\x04\x8e" + b"\xff" * 8])
def test_broken_pickles(content: bytes, tmp_path: pathlib.Path) -> None:
    """Cut off; an unknown instruction; a byte string of 2^64 bytes."""
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is cut off, or no pickle") as caught:
        describe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"state": {"a": torch.zeros(1)}}, [torch.zeros(1)], {"a": 1}])
def test_other_things_than_a_state_dict_are_refused(content: Any, tmp_path: pathlib.Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="other things than named tensors") as caught:
        convert(tmp_path / "a.pt", tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
