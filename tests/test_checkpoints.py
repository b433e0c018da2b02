"""Checkpoints: what is written comes back, what is broken or foreign is refused."""

import contextlib
import dataclasses
import json
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmrepro.checkpoints import io
from cmrepro.checkpoints.io import (
    FORMAT,
    CheckpointInfo,
    find_checkpoint,
    load_model,
    read_info,
    save_checkpoint,
)
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.networks.presets import PRESETS, build_network

TINY = ADMConfig(32, (1,), 1, (), 32)
INFO = CheckpointInfo(
    "tiny", "edm", 0.5, 0.002, 80.0, {"name": "r", "mu0": None}, {"seed": 3, "data": "\u00e9"}
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", (UNet, TINY))
    monkeypatch.setitem(PRESETS, "wide", (UNet, dataclasses.replace(TINY, num_channels=64)))
    monkeypatch.setitem(PRESETS, "deep", (UNet, dataclasses.replace(TINY, num_res_blocks=2)))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random everywhere: a fresh network has zeros, which survive any rounding."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(tensor.shape, generator=generator)
        for key, tensor in build_network("tiny").state_dict().items()
    }


@pytest.fixture
def path(tmp_path: pathlib.Path, weights: dict[str, Tensor]) -> pathlib.Path:
    """A good checkpoint."""
    return written(tmp_path / "a.safetensors", weights)


def written(
    path: pathlib.Path, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> pathlib.Path:
    network = build_network("tiny")
    network.load_state_dict(weights)
    save_checkpoint(path, network, INFO, dtype)
    return path


def error_of(path: str | pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def metadata(**changes: str) -> dict[str, str]:
    return {"format": FORMAT, "info": json.dumps(dataclasses.asdict(INFO))} | changes


def test_fp32_comes_back_bit_for_bit(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    model = load_model(path)
    info = model.info
    loaded = model.network.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert info == read_info(path) == INFO
    assert (model.parameterization, model.sigma_data, model.sigma_min) == ("edm", 0.5, 0.002)


def test_the_model_is_ready_to_sample(path: pathlib.Path) -> None:
    model = load_model(path)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    convolution = model.network.out[2].weight  # (3, 32, 3, 3)
    assert convolution.is_contiguous(memory_format=torch.channels_last)


def test_fp16_comes_back_within_its_rounding(
    tmp_path: pathlib.Path, weights: dict[str, Tensor]
) -> None:
    """Half the last of 11 binary digits: 2^-11 relative, and 2^-25 among the subnormals."""
    path = written(tmp_path / "a.safetensors", weights, torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    loaded = load_model(path).network.state_dict()
    for key, exact in weights.items():
        assert loaded[key].dtype == torch.float32
        assert ((loaded[key] - exact).abs() <= 2**-11 * exact.abs() + 2**-25).all()
    assert any((loaded[key] != weights[key]).any() for key in weights)  # really stored in half


def test_an_interrupted_write_keeps_the_old_checkpoint(
    path: pathlib.Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def interrupted(weights: Any, temporary: pathlib.Path, metadata: Any) -> None:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(io, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(path, weights)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused(path: pathlib.Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    assert f"{path} is not a whole safetensors file" in error_of(path)


def test_another_format_is_refused(path: pathlib.Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    assert f"{path} is not a whole safetensors file" in error_of(path)


@pytest.mark.parametrize("foreign", [None, {"format": "pt"}, metadata(format="cmrepro-2")])
def test_foreign_safetensors_are_refused(
    path: pathlib.Path, weights: dict[str, Tensor], foreign: dict[str, str] | None
) -> None:
    save_file(weights, path, foreign)
    expected = foreign["format"] if foreign else "none"
    assert f"has format '{expected}', allowed is '{FORMAT}'" in error_of(path)


@pytest.mark.parametrize("info", ["{", "[]", "{}", '{"network": "tiny", "colour": 1}'])
def test_a_broken_header_is_refused(
    path: pathlib.Path, weights: dict[str, Tensor], info: str
) -> None:
    save_file(weights, path, metadata(info=info))
    assert f"{path} has a broken header" in error_of(path)


def test_a_header_without_info_is_refused(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path, {"format": FORMAT})
    assert f"{path} has a broken header" in error_of(path)


def test_each_parameter_that_does_not_fit_is_named(
    path: pathlib.Path, weights: dict[str, Tensor]
) -> None:
    without = {key: value for key, value in weights.items() if key != "out.2.bias"}
    for changed, message in (
        (without, "it lacks parameter out.2.bias"),
        (weights | {"out.3.bias": torch.zeros(1)}, "it has a surplus parameter out.3.bias"),
        (weights | {"out.2.bias": torch.zeros(4)}, r"it has out.2.bias (4,), not (3,)"),
    ):
        save_file(changed, path, metadata())
        assert f"{path} is not of network 'tiny': {message}" in error_of(path)


@pytest.mark.parametrize("network", ["wide", "deep"])
def test_the_weights_of_another_network_are_refused(
    path: pathlib.Path, weights: dict[str, Tensor], network: str
) -> None:
    info = json.dumps(dataclasses.asdict(INFO) | {"network": network})
    save_file(weights, path, metadata(info=info))
    message = error_of(path)
    assert f"{path} is not of network '{network}': it " in message
    assert "input_blocks." in message  # names a parameter


def test_an_unknown_network_is_refused(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    info = json.dumps(dataclasses.asdict(INFO) | {"network": "tinny"})
    save_file(weights, path, metadata(info=info))
    assert "unknown network 'tinny': did you mean 'tiny'?" in error_of(path)


def test_a_bundled_name_stands_for_its_file(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    bundled = tmp_path / "package" / "bundled" / "demo-cd.safetensors"
    bundled.parent.mkdir(parents=True)
    bundled.write_bytes(path.read_bytes())
    monkeypatch.setattr(io.resources, "files", lambda package: tmp_path / "package")
    assert io.bundled_checkpoints() == {"demo-cd": bundled}
    assert find_checkpoint("demo-cd") == bundled
    assert load_model("demo-cd").info == INFO
    assert "'demo-ct': did you mean 'demo-cd'? known: demo-cd" in error_of("demo-ct")
    assert f"{tmp_path} is a folder; a checkpoint is one file" in error_of(tmp_path)


def test_a_missing_path_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "missing.safetensors"
    assert f"unknown checkpoint (no such file either) '{path}'" in error_of(path)


def test_the_header_is_read_without_the_weights(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe_open = io.safe_open

    @contextlib.contextmanager
    def header_alone(path: pathlib.Path, framework: str) -> Iterator[types.SimpleNamespace]:
        with safe_open(path, framework) as file:
            yield types.SimpleNamespace(metadata=file.metadata)

    monkeypatch.setattr(io, "safe_open", header_alone)
    assert read_info(path) == INFO
    with pytest.raises(AttributeError, match="keys"):  # which loading the model needs
        load_model(path)
