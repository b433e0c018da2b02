"""The official flax files: what is read, what is refused, how the parameters are renamed."""

import pathlib
import pickle
import tracemalloc
from typing import Any

import golden
import golden_jax
import msgpack
import numpy as np
import pytest
import torch
from random_weights import randomise
from safetensors.numpy import save_file

from cmrepro.checkpoints.flax import (
    flax_names,
    ncsnpp_state_dict,
    read_flax_checkpoint,
    read_training_state,
)
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig

CONFIG = golden_jax.TINY


def extension(value: Any) -> msgpack.ExtType:
    """An array, numpy number or complex number as flax's serialisation writes it."""
    if isinstance(value, complex):
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
    content = (value.shape, value.dtype.name, value.tobytes())
    code = 1 if isinstance(value, np.ndarray) else 3
    return msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True))


def nested(parameters: dict[str, Any]) -> dict[str, Any]:
    """The tree of "a/b/c" names."""
    tree: dict[str, Any] = {}
    for path, value in parameters.items():
        *branches, leaf = path.split("/")
        branch = tree
        for name in branches:
            branch = branch.setdefault(name, {})
        branch[leaf] = value
    return tree


def state(parameters: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An official training state with `parameters` as its EMA; the other trees are zeros."""
    tree = nested(parameters)
    zeros = nested({path: np.zeros_like(value) for path, value in parameters.items()})
    return {
        "step": np.array(800_000, dtype=np.int32),
        "lr": np.array(4e-4, dtype=np.float32),
        "params": zeros,
        "target_params": zeros,
        "params_ema": tree,
        "model_state": {},
        "opt_state": {"0": {"count": np.int32(3), "mu": zeros, "nu": zeros}, "1": {}},
        "rng_state": {"0": np.zeros(2, dtype=np.uint32)},
    } | changes


def write(path: pathlib.Path, content: Any) -> pathlib.Path:
    path.write_bytes(msgpack.packb(content, default=extension, strict_types=True))
    return path


@pytest.fixture(scope="module")
def network() -> NCSNpp:
    result = NCSNpp(CONFIG)
    randomise(result)
    return result


@pytest.fixture
def parameters(network: NCSNpp) -> dict[str, np.ndarray]:
    """The network's, named and laid out as the official code does."""
    names = flax_names(network)
    weights = {names[key]: value.numpy() for key, value in network.state_dict().items()}
    return {
        name: w.transpose(2, 3, 1, 0).copy() if w.ndim == 4 else w.T.copy()
        for name, w in weights.items()
    }


def error_of(path: pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_flax_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def mismatch(parameters: dict[str, np.ndarray], config: NCSNppConfig = CONFIG) -> str:
    with pytest.raises(ValueError) as caught:
        ncsnpp_state_dict(parameters, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("case", "name", "step"),
    [("b", "checkpoint_74", 740_000), ("edm_tiny", "edm_cifar10_ema", 400_000)],
)
def test_official_files_hold_the_stored_parameters(case: str, name: str, step: int) -> None:
    checkpoint = read_flax_checkpoint(golden.path(f"ncsnpp/{case}/{name}"))
    expected = golden_jax.parameters(f"ncsnpp/{case}/params.npz")
    assert checkpoint.parameters.keys() == expected.keys()
    for key, value in expected.items():
        assert checkpoint.parameters[key].dtype == value.dtype, key
        np.testing.assert_array_equal(checkpoint.parameters[key], value)
    assert checkpoint.step == step
    # CT has a target network of its own.
    trees = list(read_training_state(golden.path(f"ncsnpp/{case}/{name}"), msgpack.ExtType, ()))
    assert ("target_params" in trees) == (case == "b")
    assert trees[:3] == ["step", "lr", "ema_rate"]


def test_an_official_file_becomes_the_official_consistency_function() -> None:
    checkpoint = read_flax_checkpoint(golden.path("ncsnpp/b/checkpoint_74"))
    network = NCSNpp(golden_jax.NCSNPP["b"])
    network.load_state_dict(ncsnpp_state_dict(checkpoint.parameters, network.config))
    stored = golden_jax.images("ncsnpp/b/io.npz")
    with torch.no_grad():
        f = PreconditionedModel(network, "boundary").eval()(stored["f_x"], stored["f_t"])
    # Float32 through some fifty layers, summed in another order.
    assert golden.relative_error(f, stored["f_out"]) < 1e-5


def test_a_written_file_comes_back_bit_for_bit(
    tmp_path: pathlib.Path, network: NCSNpp, parameters: dict[str, np.ndarray]
) -> None:
    checkpoint = read_flax_checkpoint(write(tmp_path / "checkpoint_80", state(parameters)))
    assert checkpoint.step == 800_000
    weights, expected = ncsnpp_state_dict(checkpoint.parameters, CONFIG), network.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert all(weight.is_contiguous() for weight in weights.values())


def test_kernels_are_transposed(parameters: dict[str, np.ndarray]) -> None:
    """Convolutions (height, width, in, out), linear layers y = x W with W (in, out)."""
    weights = ncsnpp_state_dict(parameters, CONFIG)
    kernel = parameters["ResnetBlockBigGANpp_2/Conv_0/kernel"]  # (3, 3, 8, 16)
    ours = weights["down_levels.1.blocks.0.conv1.weight"].numpy()
    for y, x, i, o in np.ndindex(kernel.shape):
        assert ours[o, i, y, x] == kernel[y, x, i, o]
    x = np.linspace(-1, 1, 16, dtype=np.float32)
    got = torch.nn.functional.linear(torch.from_numpy(x), weights["time_embed.0.weight"])
    np.testing.assert_allclose(got, x @ parameters["Dense_0/kernel"], rtol=1e-5, atol=1e-6)
    query = weights["middle.1.query.weight"].numpy()
    assert np.array_equal(query.T, parameters["AttnBlockpp_1/NIN_0/W"])


def test_arrays_in_chunks_are_put_together(tmp_path: pathlib.Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    pieces = {str(i): whole.reshape(-1)[5 * i : 5 * i + 5] for i in range(3)}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4}, "chunks": pieces}
    path = write(tmp_path / "c", state({}, params_ema={"a": {"W": chunked}}))
    np.testing.assert_array_equal(read_flax_checkpoint(path).parameters["a/W"], whole)
    del pieces["1"]
    assert "a/W is an array in chunks of which some are missing" in error_of(
        write(path, state({}, params_ema={"a": {"W": chunked}}))
    )


def test_memory_beyond_the_result_is_small(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    parameters = {
        f"layer_{i}/W": generator.standard_normal((250, 1000)).astype(np.float32) for i in range(6)
    }
    path = write(tmp_path / "checkpoint_80", state(parameters))
    size, result = path.stat().st_size, sum(w.nbytes for w in parameters.values())
    assert size > 30e6 and result < 0.21 * size
    tracemalloc.start()
    checkpoint = read_flax_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert checkpoint.parameters.keys() == parameters.keys()
    # 0.11 of the file observed: copies of one array, a thirtieth of it each, in the decoder
    assert result < peak < result + 0.2 * size


@pytest.mark.parametrize("trees", [1, 3])
def test_every_shortened_file_is_refused(tmp_path: pathlib.Path, trees: int) -> None:
    content = state({"Conv_0/bias": np.ones(3, np.float32)})
    content = {name: content[name] for name in ("params_ema", "step", "params")[-trees:]}
    whole = write(tmp_path / "whole", content).read_bytes()
    path = tmp_path / "checkpoint_80"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert f"is cut off: its {length} bytes end" in error_of(path)


class Touch:
    """Unpickling it would write a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: pathlib.Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "model.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"params_ema": Touch(ran)}, protocol))
        assert "is not a flax checkpoint" in error_of(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the pickle is harmless: no test"


def test_other_formats_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model"
    save_file({"w": np.zeros(3, np.float32)}, path)
    assert "is not a flax checkpoint" in error_of(path)
    torch.save({"w": torch.zeros(3)}, path)
    assert "is not a flax checkpoint" in error_of(path)
    path.write_text("<!DOCTYPE html><html>not found</html>")
    assert "is not a flax checkpoint" in error_of(path)
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    error_of(path)


FOREIGN = {
    "an array for a map": ([1, 2], "not a flax checkpoint"),
    "no averaged weights": ({"step": 1, "params": {}}, "no params_ema and step but step, params"),
    "no step": ({"params_ema": {}}, "no params_ema and step but params_ema"),
    "numbers for names": ({1: 2}, "a int in place of a tree's name"),
    "a text for an array": (state({}, params_ema={"a": "b"}), "a is a str, not an array"),
    "a text for a tree": (state({}, params_ema="b"), "params_ema is a str, not an array"),
    "a text for the step": (state({}, step="many"), "invalid literal for int"),
    "an unknown extension": (state({}, step=msgpack.ExtType(9, b"")), "extension of type 9"),
    "objects": (
        state({}, step=msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8)))),
        "an array of type object",
    ),
    "an unknown type": (
        state({}, step=msgpack.ExtType(1, msgpack.packb(((1,), "bfloat16", b"\0" * 2)))),
        "bfloat16",
    ),
    "too few bytes": (
        state({}, step=msgpack.ExtType(1, msgpack.packb(((3,), "float32", b"\0" * 8)))),
        "cannot reshape",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_contents_are_refused(tmp_path: pathlib.Path, what: str) -> None:
    content, reason = FOREIGN[what]
    text = error_of(write(tmp_path / "model", content))
    assert "is not a flax checkpoint" in text and reason in text


def test_what_follows_the_end_is_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "model", state({}))
    path.write_bytes(path.read_bytes() + b"more")
    assert "4 bytes follow its end" in error_of(path)


def test_a_missing_parameter_is_named(parameters: dict[str, np.ndarray]) -> None:
    del parameters["AttnBlockpp_2/NIN_3/W"]
    assert "they lack AttnBlockpp_2/NIN_3/W; use" in mismatch(parameters)


def test_a_surplus_parameter_is_named(parameters: dict[str, np.ndarray]) -> None:
    parameters["AttnBlockpp_9/NIN_3/W"] = np.zeros((16, 16), np.float32)
    del parameters["Conv_1/bias"]
    assert "they lack Conv_1/bias, they have the surplus AttnBlockpp_9/NIN_3/W; use" in mismatch(
        parameters
    )


def test_another_shape_or_type_is_named(parameters: dict[str, np.ndarray]) -> None:
    kernel = parameters["Conv_0/kernel"]  # (3, 3, 3, 8)
    for wrong, got in [
        (kernel[..., :4], "float32 (4, 3, 3, 3)"),
        (kernel[0], "float32 (3, 3, 8)"),
        (kernel.astype(np.float64), "float64 (8, 3, 3, 3)"),
    ]:
        text = mismatch(parameters | {"Conv_0/kernel": wrong})
        assert f"they have Conv_0/kernel as {got}, not float32 (8, 3, 3, 3)" in text


def test_another_network_is_refused(parameters: dict[str, np.ndarray]) -> None:
    wider = NCSNppConfig(16, (1, 2), 1)
    text = mismatch(parameters, wider)
    assert "num_channels=16" in text and " more; use a checkpoint of this network" in text
    assert "and 1" in mismatch(parameters, golden_jax.NCSNPP["b"])  # too many to name them all
