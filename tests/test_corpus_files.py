"""Statistics and checkpoints as people have them: each is read, or refused in words that help."""

import argparse
import functools
import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from official_files import TINY, flax_file, use_small_networks, weights_of
from safetensors.torch import load_file, save
from test_corpus_images import DAMAGE, damaged
from test_metrics_reference_files import ADM, IMAGES, MU, SIGMA, TTUR
from torch import Tensor

from cmrepro.checkpoints.convert import convert, read_checkpoint
from cmrepro.checkpoints.diffusers import to_diffusers, unet_config
from cmrepro.checkpoints.io import FORMAT
from cmrepro.checkpoints.load import load_model
from cmrepro.metrics.reference_files import read_statistics


def message_of(error: Exception, folder: pathlib.Path) -> str:
    """A message of one line and below 300 characters without the folder's name."""
    text = str(error).replace(f"{folder}/", "")
    assert "\n" not in text and len(text) < 300, text
    return text


# Statistics


def npz(content: dict[str, Any]) -> bytes:
    np.savez(file := io.BytesIO(), **content)
    return file.getvalue()


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did: text of no encoding."""

    def save_bytes(self, content: bytes) -> None:
        self.write(b"T" + len(content).to_bytes(4, "little") + content)  # type: ignore[attr-defined]

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_bytes}  # type: ignore


def python2(content: Any) -> bytes:
    Python2Pickler(file := io.BytesIO(), 2).dump(content)
    return file.getvalue()


def with_eigenvalue(share: float) -> np.ndarray:
    """SIGMA, its least eigenvalue a share of the largest."""
    values, vectors = np.linalg.eigh(SIGMA)
    values[0] = share * values[-1]
    return (vectors * values) @ vectors.T


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
PAGE = b"\n<!DOCTYPE html><html>"
FOREIGN = {LFS: "run 'git lfs pull'", PAGE: "is a web page", b"": "is empty"}
STATISTICS: dict[str, tuple[bytes, str]] = {
    "TTUR": (npz(TTUR), ""),
    "more keys": (npz(TTUR | {"n": np.array(5)}), ""),
    # clean-fid's mean is float32; the two triangles were rounded apart.
    "float32": (npz({"mu": MU.astype("<f4"), "sigma": SIGMA + np.triu(SIGMA * 1e-7, 1)}), ""),
    "ADM": (npz(ADM | {"mu_clip": MU, "arr_1": np.arange(10)}), ""),
    "rounded": (npz(TTUR | {"sigma": with_eigenvalue(-1e-6)}), ""),
    "zero": (npz({"mu": MU, "sigma": 0 * SIGMA}), ""),
    **{f"pickle {p}": (pickle.dumps(TTUR, p), "") for p in range(6)},
    "EDM2": (pickle.dumps({"num_images": np.int64(9), "fid": TTUR, "fd": {"mu": 1}}, 2), ""),
    "Python 2": (python2(TTUR), ""),
    "-I": (npz({"mu": MU, "sigma": -np.eye(len(MU))}), "sigma is no covariance"),
    "negative": (npz(TTUR | {"sigma": with_eigenvalue(-1e-3)}), "least eigenvalue is negative"),
    "asymmetric": (npz(TTUR | {"sigma": np.triu(SIGMA)}), "differs from its transpose"),
    "asymmetric mu_s": (npz(ADM | {"sigma_s": np.triu(ADM["sigma_s"])}), "from its transpose"),
    "float16": (npz(TTUR | {"sigma": SIGMA.astype(np.float16)}), "sigma is float16"),
    "integers": (npz(TTUR | {"mu": MU.astype(int)}), "mu is int64"),
    "list": (pickle.dumps({"mu": [*MU], "sigma": SIGMA}), "mu is list"),
    "features": (npz(TTUR | {"features": np.zeros((2, 3), bool)}), "features are bool"),
    "NaN": (npz(TTUR | {"mu": MU + np.nan}), "not finite"),
    "infinite": (pickle.dumps(TTUR | {"sigma": SIGMA * np.inf}), "not finite"),
    "huge": (npz(TTUR | {"sigma": SIGMA * 1e300}), "not finite"),
    "rows": (npz(TTUR | {"mu": MU[None]}), "mu has shape (1, 6)"),
    "nothing": (npz({"mu": MU[:0], "sigma": SIGMA[:0, :0]}), "mu has shape (0,)"),
    "images": (npz({"arr_0": IMAGES}), "it holds arr_0, must hold mu and sigma"),
    "half of ADM": (npz(TTUR | {"mu_s": MU}), "must hold mu_s and sigma_s"),
    "objects": (npz(TTUR | {"mu": np.array([{}], object)}), "Object arrays cannot be loaded"),
    "float images": (npz(ADM | {"arr_0": IMAGES.astype(float)}), "arr_0 is float64"),
    "array": (pickle.dumps(MU), "build"),
    "other": (pickle.dumps({"fd_dinov2": TTUR}), "KeyError: 'fid'"),
    "text": (b"mu = 1", "neither an .npz nor a pickle"),
    **{f"foreign {i}": case for i, case in enumerate(FOREIGN.items())},
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name: str, tmp_path: pathlib.Path) -> None:
    """The content says what a file is: this suffix is of neither format."""
    content, expected = STATISTICS[name]
    path = tmp_path / "reference.pt"
    path.write_bytes(content)
    if expected:
        with pytest.raises(ValueError) as caught:
            read_statistics(path)
        assert expected in message_of(caught.value, tmp_path)
    else:
        loaded = read_statistics(path)
        assert loaded.mu.dtype == loaded.sigma.dtype == np.float64
        rtol = 1e-6 if name == "float32" else 0
        np.testing.assert_allclose(loaded.mu, MU, rtol=rtol)
        if name not in ("rounded", "zero"):
            np.testing.assert_allclose(loaded.sigma, SIGMA, rtol=rtol)
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match="does not hold reference statistics"):
            read_statistics(path)


# Checkpoints


def torch_file(content: Any, **settings: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), **settings)
    return file.getvalue()


def index(*names: str) -> bytes:
    """Index of shards."""
    return json.dumps({"metadata": {}, "weight_map": dict(enumerate(names))}).encode()


class Hostile:
    """Unpickled, it makes the folder that the environment names."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ["HOSTILE_MARK"],)


def replaced_pickle(file: bytes, content: Any) -> bytes:
    """A file of `torch.save` with another pickle inside."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(name, pickle.dumps(content, 2) if is_pickle else old.read(name))
    return new.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
HEADER = {"network": "tiny", "parameterization": "edm", "sigma_min": 0.002, "sigma_max": 80.0}


def ours(weights: dict[str, Tensor], **changes: Any) -> bytes:
    return save(weights, {FORMAT: json.dumps(HEADER | {"sigma_data": 0.5} | changes)})


def build_corpus() -> dict[str, tuple[Any, str]]:
    """Content, or of a folder contents by path, and what the refusal says, "" if it is read.

    After "|" in a name stands a key.
    """
    tiny, half = weights_of("tiny"), len(weights_of("tiny")) // 2
    first = {name: tiny[name] for name in [*tiny][:half]}
    second = {name: tiny[name] for name in [*tiny][half:]}
    nan, large = ({**tiny, "out.2.bias": torch.full((3,), x)} for x in (np.nan, 1e6))
    theirs, hook = to_diffusers(tiny, TINY), tiny | {"hook": Hostile()}
    part = {name: x for name, x in theirs.items() if name != "conv_out.bias"}
    attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(theirs)
    for new, before in attention.items():
        old = {name.replace(f".{new}.", f".{before}."): x for name, x in old.items()}
    config = json.dumps(unet_config("tiny") | {"sample_size": [8, 8]}).encode()
    stem = "diffusion_pytorch_model"
    a, b = (f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2))
    shards = {f"{stem}.safetensors.index.json": index(a, b), a: save(first)}
    unet, one = {"config.json": config}, {f"{stem}.safetensors": save(theirs)}
    conv = config.replace(b"resnet", b"conv")
    two = {f"{stem}.fp16.safetensors": save(theirs), f"{stem}.ema.safetensors": save(theirs)}
    return {
        "plain": (save(tiny), ""),
        "bfloat16": (save({name: x.bfloat16() for name, x in tiny.items()}), ""),
        "float64": (torch_file({name: x.double() for name, x in tiny.items()}), ""),
        "before torch 1.6": (torch_file(tiny, **OLD), ""),
        "module": (torch_file({f"module.{name}": x for name, x in tiny.items()}), ""),
        "compiled": (torch_file({f"module._orig_mod.{name}": x for name, x in tiny.items()}), ""),
        "averaged": (save({f"model.{n}": x for n, x in tiny.items()} | {"n": torch.ones(1)}), ""),
        "nested": (torch_file({"state_dict": tiny, "epoch": 3}), ""),
        "several": (torch_file({"ema": tiny, "model": nan}), "keys found: ema, model; name one"),
        "several|ema": (torch_file({"ema": {"module": tiny}, "model": nan}), ""),
        "several|shadow": (torch_file({"ema": tiny}), "key 'shadow'; keys found: ema;"),
        "shards": ({"x.index.json": index("a", "b"), "a": save(first), "b": save(second)}, ""),
        "lost shard": ({"x.index.json": index("a", "b"), "a": save(first)}, "lacks b"),
        "no index": (b'{"a": 1}', "no index of weights"),
        "variant": (unet | {f"{stem}.fp16.safetensors": save(theirs)}, ""),
        "variants": (unet | two, "give a file: "),
        "no preset": (unet | one | {"config.json": conv}, "none of ours: downsample_type is conv"),
        "old attention": (unet | {f"{stem}.bin": torch_file(old)}, ""),
        "cache": (
            {f"snapshots/1a/unet/{name}": x for name, x in (unet | two).items()},
            "variants",
        ),
        "lost shard of a folder": (unet | shards, f"lacks {b}"),
        "lost parameter": (
            unet | {f"{stem}.bin": torch_file(part)},
            "it lacks parameter conv_out",
        ),
        "no weights": (unet, f"has no {stem}.safetensors"),
        "orbax": ({"_METADATA": b"{}", "checkpoint/d": b""}, "holds an orbax checkpoint"),
        "flax": (
            {"checkpoint_9": b"", "checkpoint_80": b""},
            "in it: checkpoint_9, checkpoint_80",
        ),
        "empty folder": ({"readme": b""}, "has no config.json"),
        "snapshots": ({"snapshots/1/a": b"", "snapshots/2/a": b""}, "snapshots 1, 2; give"),
        "NaN": (ours(nan), "NaN or infinity in out.2.bias"),
        "float16|": (torch_file(large), "in torch.float16 has NaN or infinity in out.2.bias"),
        "integers": (
            save({n: x.to(torch.int8) for n, x in tiny.items()}),
            "in torch.int8, allowed are",
        ),
        "sparse": (torch_file({n: x.to_sparse() for n, x in tiny.items()}), "no named tensors"),
        "object": (torch_file({"ema": tiny, "args": argparse.Namespace()}), "argparse.Namespace"),
        "list": (torch_file([tiny]), "holds no named tensors but list"),
        "numbers": (torch_file({"a": {"b": 1}}), "no named tensors but a.b"),
        "statistics": (npz(TTUR), "file in archive is not"),
        "network": (ours(tiny, network="tinny"), "did you mean 'tiny'?"),
        "unknown key": (ours(tiny, colour=1), "unknown key 'colour'"),
        "surplus": (torch_file(tiny | {"a": torch.zeros(1)}), "it has a surplus parameter a;"),
        "shape": (ours(tiny | {"out.2.bias": torch.zeros(4)}), "has out.2.bias (4,), not (3,)"),
        "flax surplus": (flax_file(params_ema={"a": {"b": np.ones(1)}}), "surplus parameter a/b"),
        "another network": (ours(tiny, network="deep"), "not of network 'deep': it lacks"),
        "NaN sigma": (ours(tiny, sigma_data=np.nan), "damaged header"),
        "deep header": (save(tiny, {FORMAT: "[" * 10**5}), "damaged header"),
        "old header": (save(tiny, {"cmrepro-checkpoint-1": "{}"}), f"allowed is '{FORMAT}'"),
        "flax float16": (flax_file(torch.float16, step=7), ""),
        "flax bfloat16": (flax_file(torch.bfloat16), ""),
        "flax params|params": (flax_file(params_ema={}, params={}), "under params; name one of"),
        "flax integers": (flax_file(params_ema={"a": np.ones(3, int)}), "a is int64, allowed are"),
        "flax lacks": (flax_file(params_ema={}), "no weights under params_ema; name one of"),
        "pickle": (pickle.dumps({"ema": Hostile()}), "is a Python pickle"),
        "text pickle": (pickle.dumps({"ema": Hostile()}, 0), "is of no known format"),
        "hook": (torch_file(hook), "GLOBAL posix.mkdir"),
        "hook before 1.6": (torch_file(hook, **OLD), "posix.mkdir"),
        "hook in a folder": (unet | {f"{stem}.bin": torch_file(hook)}, "posix.mkdir"),
        "replaced pickle": (replaced_pickle(torch_file(tiny), Hostile()), "posix.mkdir"),
        "flax pickle": (
            msgpack.packb({"params_ema": msgpack.ExtType(1, pickle.dumps(Hostile()))}),
            "is cut off or not a flax checkpoint",
        ),
        "text": (b"text, not weights", "is of no known format"),
        **{f"foreign {i}": case for i, case in enumerate(FOREIGN.items())},
    }


def write(path: pathlib.Path, content: Any) -> pathlib.Path:
    """A file, or a folder of files, or the first of them where that is an index."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    for name, part in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(part)
    return path / "x.index.json" if "x.index.json" in content else path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


def test_checkpoints(small: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted, each holds the weights exactly, or those of half precision rounded.

    Nothing in a file is executed, and without its last byte none is read.
    """
    monkeypatch.setenv("HOSTILE_MARK", str(tmp_path / "mark"))
    for case, (content, expected) in build_corpus().items():
        name, _, key = case.partition("|")
        (place := tmp_path / case).mkdir()
        path, out = write(place / "file", content), place / "out.safetensors"
        dtype = torch.float16 if name == "float16" else torch.float32
        how = {"parameterization": "edm", "key": key or None, "dtype": dtype}
        if expected:
            with pytest.raises(ValueError) as caught:
                convert(path, out, **how)
            assert expected in message_of(caught.value, place), case
            assert not out.exists()
        else:
            network = "tiny-flax" if "flax" in name else "tiny"
            got = load_file(convert(path, out, **how))
            # 8 digits of bfloat16; the subnormals of float16.
            rounding = {"rtol": 2**-8, "atol": 2**-24} if "float16" in name else {}
            exact = {"rtol": 0, "atol": 0, "check_dtype": False}
            torch.testing.assert_close(got, weights_of(network), msg=case, **exact | rounding)
            if isinstance(content, bytes):
                with pytest.raises(ValueError, match=r"cut off|not a valid safetensors file"):
                    convert(write(place / "cut", content[:-1]), out, **how)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(ValueError, match=r"NaN or infinity in out\.2\.bias"):
        load_model(tmp_path / "NaN" / "file")


# Damage


def read(path: pathlib.Path) -> Any:
    network = "tiny-flax" if path.name == "flax" else "tiny"
    source = path.parent if path.name == "config.json" else path
    return read_checkpoint(source, network=network, parameterization="edm")


READERS: dict[str, tuple[Callable[[pathlib.Path], Any], Callable[[], bytes]]] = {
    "npz": (read_statistics, lambda: npz(ADM | {"metadata": np.frombuffer(b"{}", np.uint8)})),
    "pickle": (read_statistics, lambda: pickle.dumps({"num_images": 9, "fid": TTUR})),
    "old pickle": (read_statistics, lambda: pickle.dumps(TTUR, 1)),
    "ours": (read, lambda: ours(weights_of("tiny"))),
    "torch": (read, lambda: torch_file({"ema": weights_of("tiny")})),
    "old torch": (read, lambda: torch_file(weights_of("tiny"), **OLD)),
    "flax": (read, lambda: flax_file(step=7)),
    "config.json": (read, lambda: json.dumps(unet_config("tiny")).encode()),
    "x.index.json": (read, lambda: index("a", "b")),
}
INTACT = functools.cache(lambda kind: READERS[kind][1]())


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(damage=DAMAGE)
def test_damage(kind: str, damage: list[Any], small: None, tmp_path: pathlib.Path) -> None:
    """A damaged file is refused in one line, or, where nothing tells, read."""
    path, weights = tmp_path / kind, tmp_path / "diffusion_pytorch_model.bin"
    if kind == "config.json" and not weights.exists():
        weights.write_bytes(torch_file(to_diffusers(weights_of("tiny"), TINY)))
    path.write_bytes(damaged(INTACT(kind), damage))
    try:
        result = READERS[kind][0](path)
    except ValueError as error:
        message_of(error, path.parent)
    else:
        assert kind != "npz" or np.array_equal(result.sigma, SIGMA)  # by the zip's checksums
