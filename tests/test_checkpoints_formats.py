"""Official files become our checkpoints; what is broken or foreign is refused."""

import errno
import hashlib
import pathlib
from typing import Any

import golden
import pytest
import torch
from official_files import use_small_networks, weights_of, write_flax, write_torch
from safetensors.torch import load_file

from cmrepro.checkpoints import io
from cmrepro.checkpoints.contents import describe
from cmrepro.checkpoints.convert import CONVERSION_VERSION, convert
from cmrepro.checkpoints.io import load_model, read_info
from cmrepro.networks.presets import build_network


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


@pytest.fixture
def torch_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A state dict of "tiny"."""
    return write_torch(tmp_path / "tiny.pt")


@pytest.fixture
def flax_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A training state of "tiny-flax"."""
    return write_flax(tmp_path / "checkpoint_7")


def error_of(source: Any, out: pathlib.Path, **choices: Any) -> str:
    """The one-line error of a conversion that leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ValueError) as caught:
        convert(source, out, **choices)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("case", ["cond", "uncond"])
def test_an_official_state_dict_gives_the_official_output(
    case: str, tmp_path: pathlib.Path
) -> None:
    """adm/cond and adm/uncond of the stored outputs: the head order of flash-attention too."""
    file = golden.path(f"adm/{case}/state_dict.pt")
    stored = golden.arrays(f"adm/{case}/io.npz")
    path = convert(file, tmp_path / "x.safetensors", parameterization="edm")
    model = load_model(path)
    assert model.info.network == case  # found by names and shapes
    with torch.no_grad():
        output = model.network(stored["x"], stored["timesteps"] / 1000, stored.get("y"))
    # Float32 through some twenty layers, summed in another order.
    assert golden.relative_error(output, stored["out"]) < 1e-5
    assert model.info.origin["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["torch", "flax"])
def test_resaved_and_reloaded_it_gives_the_same_bits(
    kind: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    source = request.getfixturevalue(f"{kind}_file")
    first = convert(source, tmp_path / "first.safetensors", parameterization="boundary")
    second = convert(first, tmp_path / "second.safetensors")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 80.0])
    network = build_network("tiny" if kind == "torch" else "tiny-flax")
    network.load_state_dict(weights_of("tiny" if kind == "torch" else "tiny-flax"))
    original = network.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        outputs = [load_model(path)(x, t) for path in (first, second)]
        models = [load_model(path).network(x, t.log() / 4) for path in (first, second)]
        expected = original(x, t.log() / 4)
    assert torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(output, expected) for output in models)
    assert read_info(first) == read_info(second)


def test_the_header_says_where_it_came_from(
    torch_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    info = read_info(convert(torch_file, tmp_path / "x.safetensors", parameterization="edm"))
    assert (info.network, info.parameterization, info.selection) == ("tiny", "edm", "not known")
    assert (info.sigma_data, info.sigma_min, info.sigma_max) == (0.5, 0.002, 80.0)
    assert info.recipe == {}
    expected = {
        "source": "tiny.pt",
        "source_format": "torch",
        "source_sha256": hashlib.sha256(torch_file.read_bytes()).hexdigest(),
        "conversion": CONVERSION_VERSION,
    }
    assert {key: info.origin[key] for key in expected} == expected


def test_flax_gives_the_ema_weights(flax_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = convert(flax_file, tmp_path / "x.safetensors", parameterization="boundary")
    expected, got = weights_of("tiny-flax"), load_file(path)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    origin = read_info(path).origin
    assert (origin["weights"], origin["steps"], origin["source_format"]) == ("ema", 7, "flax")


def test_half_precision_keeps_the_constants(
    flax_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = convert(
        flax_file, tmp_path / "x.safetensors", parameterization="boundary", dtype=torch.float16
    )
    types = {key: tensor.dtype for key, tensor in load_file(path).items()}
    kept = {key for key, dtype in types.items() if dtype == torch.float32}
    assert kept == {"fourier.frequencies"}
    assert set(types.values()) == {torch.float32, torch.float16}


def test_each_parameter_that_does_not_fit_is_named(tmp_path: pathlib.Path) -> None:
    good = weights_of("tiny")
    without = {key: value for key, value in good.items() if key != "out.2.bias"}
    path, out = tmp_path / "bad.pt", tmp_path / "x.safetensors"
    for changed, message in (
        (without, "it lacks parameter out.2.bias"),
        (good | {"out.3.bias": torch.zeros(1)}, "it has a surplus parameter out.3.bias"),
        (good | {"out.2.bias": torch.zeros(4)}, "it has out.2.bias (4,), not (3,)"),
    ):
        torch.save(changed, path)
        choices = {"network": "tiny", "parameterization": "edm"}
        assert f"{path} is not of network 'tiny': {message}" in error_of(path, out, **choices)
        assert "has the parameters of no network of ours" in error_of(path, out)


def test_a_wrong_network_is_refused(
    torch_file: pathlib.Path, flax_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "x.safetensors"
    choices = {"parameterization": "edm"}
    message = error_of(torch_file, out, network="deep", **choices)
    assert "is not of network 'deep': it lacks parameter input_blocks.2" in message
    message = error_of(torch_file, out, network="tinny", **choices)
    assert "did you mean 'tiny'" in message
    message = error_of(flax_file, out, network="tiny", **choices)
    assert "is a flax checkpoint, got network 'tiny'; allowed are tiny-flax" in message


@pytest.mark.parametrize("kind", ["torch", "flax"])
def test_what_the_file_does_not_say_must_be_given(
    kind: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    source = request.getfixturevalue(f"{kind}_file")
    message = error_of(source, tmp_path / "x.safetensors")
    assert "does not say whether it is a consistency function or an EDM denoiser" in message
    with pytest.raises(ValueError, match="give one with --out"):
        convert(source, parameterization="edm")


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "flax"])
def test_a_cut_off_file_is_refused(
    kind: str, fraction: float, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    source = request.getfixturevalue(f"{kind}_file")
    content = source.read_bytes()
    source.write_bytes(content[: int(fraction * len(content))])
    message = error_of(source, tmp_path / "x.safetensors", parameterization="edm")
    assert "cut off" in message
    with pytest.raises(ValueError, match="cut off"):
        describe(source)


@pytest.mark.parametrize("content", [b"", b"\x80", b"text, not weights", bytes(100)])
def test_unknown_formats_are_refused(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert "is of no known format" in error_of(path, tmp_path / "x.safetensors")


def test_a_full_disk_leaves_nothing(
    torch_file: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(weights: Any, temporary: pathlib.Path, metadata: Any) -> None:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "save_file", full)
    out = tmp_path / "x.safetensors"
    message = error_of(torch_file, out, parameterization="edm")
    assert message.startswith(f"cannot write {out}: no space left")
