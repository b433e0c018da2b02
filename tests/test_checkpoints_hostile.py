"""Files that would run code when they are opened carelessly: no reader runs it."""

import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import torch
from official_files import use_small_networks, weights_of

from cmrepro.checkpoints.contents import contents
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers import OLD_WEIGHTS, unet_config
from cmrepro.checkpoints.flax import read_flax_checkpoint
from cmrepro.checkpoints.formats import read_torch_file
from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import load_model

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
    "contents": lambda path: contents(str(path)),
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
    with pytest.raises(ValueError) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not mark.exists()
    assert not path.with_name("x.safetensors").exists()


def test_edm_pickles_are_refused_with_advice(tmp_path: pathlib.Path) -> None:
    path = bare_pickle(tmp_path / "edm-cifar10-32x32-cond-vp.pkl")
    with pytest.raises(ValueError, match="is a Python pickle") as caught:
        load_model(path)
    assert "NVIDIA's EDM models" in str(caught.value) and "edm-cifar10" in str(caught.value)
