"""Checkpoints of ours and files of any format: what is written or converted comes back exactly."""

import hashlib
import pathlib

import golden
import pytest
import torch
from official_files import use_small_networks, weights_of, write_flax, write_torch
from safetensors.torch import load_file
from torch import Tensor

from cmrepro.checkpoints.convert import CONVERSION_VERSION, convert
from cmrepro.checkpoints.io import bundled_checkpoints, read_info, save_checkpoint
from cmrepro.checkpoints.load import contents, find_checkpoint, load_model
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import CheckpointInfo, ConvertedFile
from cmrepro.schema import to_builtins
from cmrepro.settings import Selection

NETWORKS = {"torch": "tiny", "flax": "tiny-flax"}
INFO = CheckpointInfo(
    network="tiny",
    parameterization="edm",
    sigma_data=0.5,
    sigma_min=0.002,
    sigma_max=80.0,
    selection=Selection(rule="least fid of 2 candidates \u00e9", metric="fid", seeds=(1000,)),
)


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


@pytest.fixture(params=NETWORKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(kind: str, tmp_path: pathlib.Path) -> pathlib.Path:
    """A state dict of "tiny", or a training state of "tiny-flax" at step 7."""
    write = {"torch": write_torch, "flax": write_flax}[kind]
    return write(tmp_path / "file")


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "x.safetensors"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random everywhere: a fresh network has zeros, which survive any rounding."""
    return weights_of("tiny")


@pytest.fixture
def path(tmp_path: pathlib.Path, weights: dict[str, Tensor]) -> pathlib.Path:
    """A good checkpoint."""
    network = build_network("tiny")
    network.load_state_dict(weights)
    save_checkpoint(tmp_path / "a.safetensors", network, INFO)
    return tmp_path / "a.safetensors"


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


@pytest.mark.parametrize("name", bundled_checkpoints())
def test_bundled_names_stand_for_their_files(name: str) -> None:
    model = load_model(name)
    assert model.path == find_checkpoint(name) == bundled_checkpoints()[name]
    assert model.info.recipe and name.startswith(model.info.recipe.name)
    assert model.info.training and model.info.training.scale == "demo"


def test_unknown_names_list_the_nearest(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"no such file either.*mean 'imagenet64-cd-l2'.* list"):
        convert("imagenet64-cd-l3", tmp_path / "x")


@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_an_official_state_dict_gives_the_official_output(case: str, out: pathlib.Path) -> None:
    """adm/cond and adm/uncond of the stored outputs: the head order of flash-attention too."""
    file = golden.path(f"adm/{case}/state_dict.pt")
    stored = golden.arrays(f"adm/{case}/io.npz")
    model = load_model(convert(file, out, parameterization="edm"))
    assert model.info.network == case  # found by names and shapes
    with torch.no_grad():
        output = model.network(stored["x"], stored["timesteps"] / 1000, stored.get("y"))
    # Float32 through some twenty layers, summed in another order.
    assert golden.relative_error(output, stored["out"]) < 1e-5


def test_a_converted_file_has_the_same_bits_and_names_its_source(
    kind: str, source: pathlib.Path, out: pathlib.Path
) -> None:
    """Of flax, the bits of the EMA weights."""
    expected, step = weights_of(NETWORKS[kind]), 7 if kind == "flax" else None
    convert(source, out, parameterization="edm")
    again = convert(out, out.with_name("again"))
    for path in (out, again):
        got = load_file(path)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    info = read_info(out)
    assert info == read_info(again)
    assert (info.network, info.parameterization) == (NETWORKS[kind], "edm")
    assert (info.sigma_data, info.sigma_min, info.sigma_max) == (0.5, 0.002, 80.0)
    assert (info.recipe, info.training) == (None, None)
    assert info.selection == Selection(rule="not stated")
    assert info.converted == ConvertedFile(
        file=source.name,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        format=kind,  # type: ignore[arg-type]
        conversion=CONVERSION_VERSION,
        step=step,
    )
    assert contents(str(source)) == {
        "format": kind,
        "bytes": source.stat().st_size,
        "num_parameters": sum(tensor.numel() for tensor in expected.values()),
        "dtype": "float32",
        "step": step,
        "network": NETWORKS[kind],
    }


def test_half_precision_keeps_the_constants(out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Half the last of 11 binary digits: 2^-11 relative, and 2^-25 among the subnormals."""
    source = write_flax(tmp_path / "checkpoint_7")
    convert(source, out, parameterization="boundary", dtype=torch.float16)
    types = {key: tensor.dtype for key, tensor in load_file(out).items()}
    assert {key for key, t in types.items() if t == torch.float32} == {"fourier.frequencies"}
    assert set(types.values()) == {torch.float32, torch.float16}
    loaded, exact = load_model(out).network.state_dict(), weights_of("tiny-flax")
    torch.testing.assert_close(loaded, exact, rtol=2**-11, atol=2**-25)


def test_a_second_time_and_its_selection_are_put_into_the_header(out: pathlib.Path) -> None:
    selection = Selection(rule="least fid of 8 candidates", metric="fid", seeds=(1000,))
    source = "demo-cifar10-cd"
    info = read_info(convert(source, out, two_step_time=1.5, two_step_selection=selection))
    assert (info.two_step_time, info.two_step_selection) == (1.5, selection)
    assert info.training == load_model(source).info.training
    info = read_info(convert(out, two_step_time=2.5, out=out.with_name("y")))
    assert (info.two_step_time, info.two_step_selection) == (2.5, None)  # given by hand
    with pytest.raises(ValueError, match=r"allowed is between 0\.002 and 80"):
        convert(source, out, two_step_time=90)


def test_two_networks_of_the_same_shapes_are_not_guessed(
    out: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "twin", PRESETS["tiny"])
    source = write_torch(tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"tiny, twin.*--network"):
        convert(source, out, parameterization="edm")
    convert(source, out, network="twin", parameterization="edm")
    assert read_info(out).network == "twin"
    with pytest.raises(ValueError, match="got --network tiny"):
        convert(out, tmp_path / "y.safetensors", network="tiny")


def test_the_user_names_parameterization_and_output(
    source: pathlib.Path, out: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match="give --parameterization"):
        convert(source, out)
    with pytest.raises(ValueError, match="give one with --out"):
        convert(source, parameterization="edm")
