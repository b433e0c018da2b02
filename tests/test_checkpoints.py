"""Checkpoints of ours: what is written comes back, what is broken or foreign is refused."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import pytest
import torch
from official_files import TINY, use_small_networks, weights_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmrepro.checkpoints.io import FORMAT, bundled_checkpoints, read_info, save_checkpoint
from cmrepro.checkpoints.load import find_checkpoint, load_model
from cmrepro.networks.adm import UNet
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import CheckpointInfo
from cmrepro.schema import to_builtins
from cmrepro.settings import Selection

INFO = CheckpointInfo(
    network="tiny",
    parameterization="edm",
    sigma_data=0.5,
    sigma_min=0.002,
    sigma_max=80.0,
    selection=Selection(rule="least fid of 2 candidates \u00e9", metric="fid", seeds=(1000,)),
)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "wide", (UNet, dataclasses.replace(TINY, num_channels=64)))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random everywhere: a fresh network has zeros, which survive any rounding."""
    return weights_of("tiny")


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


def metadata(**changes: Any) -> dict[str, str]:
    return {FORMAT: json.dumps(to_builtins(INFO) | changes)}


def test_fp32_comes_back_bit_for_bit(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    model = load_model(path)
    loaded = model.network.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert model.info == read_info(path) == INFO
    assert (model.parameterization, model.sigma_data, model.sigma_min) == ("edm", 0.5, 0.002)
    checkpoint = to_builtins(model.checkpoint)
    assert checkpoint.pop("file") == "a.safetensors"
    assert checkpoint.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint == to_builtins(INFO)


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


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_off_file_is_refused(path: pathlib.Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    assert str(path) in error_of(path)


def test_foreign_safetensors_are_refused(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path, {"format": "pt"})
    assert f"has header 'format', allowed is '{FORMAT}'" in error_of(path)


def test_a_foreign_header_is_refused(path: pathlib.Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path, metadata(colour=1))
    assert f"{path}: unknown key 'colour'" in error_of(path)


def test_each_parameter_that_does_not_fit_is_named(
    path: pathlib.Path, weights: dict[str, Tensor]
) -> None:
    without = {key: value for key, value in weights.items() if key != "out.2.bias"}
    for changed, message in (
        (without, "it lacks parameter out.2.bias"),
        (weights | {"out.3.bias": torch.zeros(1)}, "it has a surplus parameter out.3.bias"),
        (weights | {"out.2.bias": torch.zeros(4)}, "it has out.2.bias (4,), not (3,)"),
    ):
        save_file(changed, path, metadata())
        assert f"{path} is not of network 'tiny': {message}" in error_of(path)
    save_file(weights, path, metadata(network="wide"))
    assert f"{path} is not of network 'wide': it has input_blocks." in error_of(path)
    save_file(weights, path, metadata(network="tinny"))
    assert "unknown network 'tinny': did you mean 'tiny'?" in error_of(path)


@pytest.mark.parametrize("name", bundled_checkpoints())
def test_bundled_names_stand_for_their_files(name: str) -> None:
    model = load_model(name)
    assert model.path == find_checkpoint(name) == bundled_checkpoints()[name]
    assert model.info.recipe and model.info.recipe.name == name
    assert model.info.training and model.info.training.scale == "demo"


def test_unknown_names_list_the_nearest(tmp_path: pathlib.Path) -> None:
    message = error_of("imagenet64-cd-l3")
    assert "did you mean 'imagenet64-cd-l2'" in message and "checkpoints list" in message
    assert "no such file either" in error_of(tmp_path / "missing.safetensors")
