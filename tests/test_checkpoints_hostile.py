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

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.diffusers import unet_config
from cmrepro.checkpoints.load import contents, load_model

MARK = "HOSTILE_MARK"


class Hostile:
    """Unpickled, it makes the folder that the environment names."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ[MARK],)


def bare_pickle(path: pathlib.Path, protocol: int = 4) -> None:
    """As NVIDIA's EDM models come."""
    path.write_bytes(pickle.dumps({"ema": Hostile()}, protocol))


def old_pickle(path: pathlib.Path) -> None:
    """Of the text protocol, which has no mark at its beginning."""
    bare_pickle(path, protocol=0)


def state_dict(path: pathlib.Path, of_torch_1_6: bool = True) -> None:
    """Good weights with an object among them."""
    weights = {**weights_of("tiny"), "hook": Hostile()}
    torch.save(weights, path, _use_new_zipfile_serialization=of_torch_1_6)


def old_state_dict(path: pathlib.Path) -> None:
    """Of torch before 1.6: pickles one after the other."""
    state_dict(path, of_torch_1_6=False)


def replaced_pickle(path: pathlib.Path) -> None:
    """A whole official file whose inner pickle is another."""
    good = io.BytesIO()
    torch.save(weights_of("tiny"), good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            hostile = pickle.dumps(Hostile(), protocol=2)
            new.writestr(name, hostile if name.endswith("data.pkl") else old.read(name))


def diffusers_folder(path: pathlib.Path) -> None:
    """With its weights in the pickled form alone."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(unet_config("tiny")))
    state_dict(path / "diffusion_pytorch_model.bin")


def flax_pickle(path: pathlib.Path) -> None:
    """A pickle in the place of a flax file's trees."""
    content = {"step": 1, "params_ema": msgpack.ExtType(1, pickle.dumps(Hostile()))}
    path.write_bytes(msgpack.packb(content))


READERS: dict[str, Callable[[pathlib.Path], Any]] = {
    "convert": lambda path: convert(
        path, path.with_name("x.safetensors"), network="tiny", parameterization="edm"
    ),
    "contents": lambda path: contents(str(path)),
    "load_model": load_model,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "build",
    [
        *(bare_pickle, old_pickle, state_dict, old_state_dict, replaced_pickle),
        *(diffusers_folder, flax_pickle),
    ],
)
def test_no_reader_runs_the_code_of_a_file(
    build: Callable[[pathlib.Path], None],
    reader: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    path = tmp_path / "model"
    build(path)
    with pytest.raises(ValueError) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    if build is bare_pickle:
        assert "is a Python pickle" in str(caught.value) and "edm-cifar10" in str(caught.value)
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "x.safetensors").exists()
