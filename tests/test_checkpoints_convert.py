"""Files of any supported format become our checkpoints; broken or foreign ones are refused."""

import hashlib
import pathlib
from typing import Any

import golden
import pytest
import torch
from official_files import use_small_networks, weights_of, write_flax, write_torch
from safetensors.torch import load_file

from cmrepro.checkpoints.convert import CONVERSION_VERSION, convert
from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import contents, load_model
from cmrepro.networks.presets import PRESETS, build_network
from cmrepro.records import ConvertedFile
from cmrepro.settings import Selection

KINDS = pytest.mark.parametrize("kind", ["torch", "flax"])
NETWORKS = {"torch": "tiny", "flax": "tiny-flax"}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


@pytest.fixture
def files(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    """A state dict of "tiny" and a training state of "tiny-flax", step 7."""
    return {
        "torch": write_torch(tmp_path / "tiny.pt"),
        "flax": write_flax(tmp_path / "checkpoint_7"),
    }


def error_of(source: Any, out: pathlib.Path, **choices: Any) -> str:
    """The one-line error of a conversion that leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ValueError) as caught:
        convert(source, out, **choices)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("official", [True, False], ids=["official file", "saved here"])
@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_an_official_state_dict_gives_the_official_output(
    case: str, official: bool, tmp_path: pathlib.Path
) -> None:
    """adm/cond and adm/uncond of the stored outputs: the head order of flash-attention too."""
    file = golden.path(f"adm/{case}/state_dict.pt") if official else tmp_path / "a.pt"
    if not official:
        torch.save(golden.adm_weights(case), file)
    stored = golden.arrays(f"adm/{case}/io.npz")
    model = load_model(convert(file, tmp_path / "x.safetensors", parameterization="edm"))
    assert model.info.network == case  # found by names and shapes
    with torch.no_grad():
        output = model.network(stored["x"], stored["timesteps"] / 1000, stored.get("y"))
    # Float32 through some twenty layers, summed in another order.
    assert golden.relative_error(output, stored["out"]) < 1e-5


@KINDS
def test_resaved_and_reloaded_it_gives_the_same_bits(
    kind: str, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """Of flax, the EMA weights."""
    first = convert(files[kind], tmp_path / "1.safetensors", parameterization="boundary")
    second = convert(first, tmp_path / "2.safetensors")
    expected = weights_of(NETWORKS[kind])
    for path in (first, second):
        got = load_file(path)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert read_info(first) == read_info(second)


@KINDS
def test_the_header_names_the_source(
    kind: str, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    info = read_info(convert(files[kind], tmp_path / "x.safetensors", parameterization="edm"))
    assert (info.network, info.parameterization) == (NETWORKS[kind], "edm")
    assert (info.sigma_data, info.sigma_min, info.sigma_max) == (0.5, 0.002, 80.0)
    assert (info.recipe, info.training) == (None, None)
    assert info.selection == Selection(rule="not stated")
    assert info.converted == ConvertedFile(
        file=files[kind].name,
        sha256=hashlib.sha256(files[kind].read_bytes()).hexdigest(),
        format=kind,  # type: ignore[arg-type]
        conversion=CONVERSION_VERSION,
        step=7 if kind == "flax" else None,
    )


def test_half_precision_keeps_the_constants(
    files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    choices: dict[str, Any] = {"parameterization": "boundary", "dtype": torch.float16}
    path = convert(files["flax"], tmp_path / "x.safetensors", **choices)
    types = {key: tensor.dtype for key, tensor in load_file(path).items()}
    assert {key for key, t in types.items() if t == torch.float32} == {"fourier.frequencies"}
    assert set(types.values()) == {torch.float32, torch.float16}


def test_a_second_time_and_its_selection_are_put_into_the_header(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "x.safetensors"
    selection = Selection(rule="least fid of 8 candidates", metric="fid", seeds=(1000,))
    source = "demo-cifar10-cd"
    info = read_info(convert(source, out, two_step_time=1.5, two_step_selection=selection))
    assert (info.two_step_time, info.two_step_selection) == (1.5, selection)
    assert info.training == load_model(source).info.training
    info = read_info(convert(out, two_step_time=2.5, out=tmp_path / "y.safetensors"))
    assert (info.two_step_time, info.two_step_selection) == (2.5, None)  # given by hand
    assert "allowed is 0.002 to 80" in error_of(source, out, two_step_time=90)


def test_each_parameter_that_does_not_fit_is_named(tmp_path: pathlib.Path) -> None:
    good, path = weights_of("tiny"), tmp_path / "bad.pt"
    without = {key: value for key, value in good.items() if key != "out.2.bias"}
    for changed, message in (
        (without, "it lacks parameter out.2.bias"),
        (without | {"a": torch.zeros(1)}, "out.2.bias, it has a surplus parameter a"),
        (good | {"b": torch.zeros(1), "a": torch.zeros(1)}, "surplus parameter a (and 1 more)"),
        (good | {"out.2.bias": torch.zeros(4)}, "it has out.2.bias (4,), not (3,)"),
    ):
        torch.save(changed, path)
        for choices in ({"network": "tiny"}, {}):
            text = error_of(path, tmp_path / "x.safetensors", **choices)
            assert str(path) in text and "'tiny'" in text and message in text


def test_parameters_of_a_flax_file_have_their_official_names(tmp_path: pathlib.Path) -> None:
    tree = {"Conv_9": {"bias": torch.zeros(3).numpy()}}
    path = write_flax(tmp_path / "checkpoint_80", params_ema=tree)
    assert "is not of network 'tiny'" in error_of(path, tmp_path / "x", network="tiny")
    text = error_of(path, tmp_path / "x.safetensors", network="tiny-flax")
    assert "surplus parameter Conv_9/bias" in text and "lacks parameter AttnBlockpp_0" in text


def test_two_networks_of_the_same_shapes_are_not_guessed(
    files: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "twin", PRESETS["tiny"])
    out, choices = tmp_path / "x.safetensors", {"parameterization": "edm"}
    message = error_of(files["torch"], out, **choices)
    assert "tiny, twin" in message and "--network" in message
    path = convert(files["torch"], out, network="twin", parameterization="edm")
    assert read_info(path).network == "twin"
    assert "got --network tiny" in error_of(path, tmp_path / "y.safetensors", network="tiny")


@KINDS
def test_what_the_file_does_not_state_must_be_given(
    kind: str, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert "give --parameterization" in error_of(files[kind], tmp_path / "x")
    with pytest.raises(ValueError, match="give --parameterization"):
        load_model(files[kind])
    with pytest.raises(ValueError, match="give one with --out"):
        convert(files[kind], parameterization="edm")


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
@KINDS
def test_a_cut_off_file_is_refused(
    kind: str, fraction: float, files: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    source = files[kind]
    content = source.read_bytes()
    source.write_bytes(content[: int(fraction * len(content))])
    message = error_of(source, tmp_path / "x.safetensors", parameterization="edm")
    assert f"{source} is cut off" in message


@pytest.mark.parametrize("content", [b"", b"\x80", b"text, not weights", bytes(100)])
def test_unknown_formats_are_refused(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert f"{path} is of no known format" in error_of(path, tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [{"state": {"a": torch.zeros(1)}}, [torch.zeros(1)], {"a": 1}])
def test_other_things_than_a_state_dict_are_refused(content: Any, tmp_path: pathlib.Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt", tmp_path / "x.safetensors")
    assert "other things than named tensors" in message


@KINDS
def test_inspect_shows_the_contents(kind: str, files: dict[str, pathlib.Path]) -> None:
    found = contents(str(files[kind]))
    parameters = build_network(NETWORKS[kind]).state_dict().values()
    assert found == {
        "format": kind,
        "bytes": files[kind].stat().st_size,
        "num_parameters": sum(tensor.numel() for tensor in parameters),
        "dtype": "float32",
        "step": 7 if kind == "flax" else None,
        "network": NETWORKS[kind],
    }
