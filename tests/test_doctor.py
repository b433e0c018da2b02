"""`cmrepro doctor`: planted causes, clean inputs, installed files."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from records_of import demo_record

from cmrepro.checks import files as module
from cmrepro.checks.files import (
    Finding,
    channel_order,
    examine,
    image_faults,
    stated_faults,
    value_range,
)
from cmrepro.checks.installed import file_state
from cmrepro.cli.doctor import doctor
from cmrepro.data import ImageDataset
from cmrepro.files import RECORDED
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import load_reference
from cmrepro.records import SampleProvenance
from cmrepro.settings import Reference

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOSSLESS = ROOT.parent / "shared" / "data" / "cifar10-lossless-subset.npz"
EMBEDDED = load_protocol("embedded")
NUM_IMAGES = 150

Images = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for each fault to stand out; the reference's file takes a second to read."""
    monkeypatch.setattr(module, "NUM_FEATURES", NUM_IMAGES)
    monkeypatch.setattr(module, "load_reference", functools.cache(load_reference))


@pytest.fixture(scope="module")
def real() -> Images:
    """Test images of CIFAR-10 without loss; skips where they are absent."""
    if not LOSSLESS.is_file():
        pytest.skip("needs ../shared/data")
    with np.load(LOSSLESS, allow_pickle=False) as arrays:
        return arrays["test_images"][:NUM_IMAGES]


def found(findings: Iterable[Finding]) -> list[str]:
    return [finding.finding.split()[0] for finding in findings]


# ---- sample sets

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


def test_value_ranges() -> None:
    assert found(value_range(PIXELS)) == []
    for wrong in (PIXELS / 255, 127.5 + PIXELS / 2, (2.0 * PIXELS - 255).clip(0, 255)):
        assert found(value_range(wrong.astype(np.uint8))) == ["pixels"]


PLANTS: dict[str, Callable[[Images], Images]] = {
    "red": lambda x: x[..., ::-1].copy(),
    "duplicate": lambda x: x[np.arange(len(x)) % 40],
}


@pytest.mark.parametrize("cause", PLANTS)
def test_a_planted_fault_is_found(cause: str, real: Any) -> None:
    planted = ImageDataset("planted", PLANTS[cause](real))
    assert found(image_faults(planted, EMBEDDED)) == [cause]


def test_clean_images_have_no_finding(real: Any) -> None:
    assert found(image_faults(ImageDataset("", real), EMBEDDED)) == []


def test_channels_are_swapped_where_fid_falls_by_more_than_chance() -> None:
    assert found(channel_order(100.0, 99.0)) == found(channel_order(100.0, 105.0)) == []
    assert found(channel_order(105.0, 100.0)) == ["red"]


# ---- records, provenance, checkpoints


def test_faults_that_a_record_states() -> None:
    reference = Reference(name="r", dataset="cifar10-jpeg", split="train")
    clean = demo_record("cd", 1, 0, 50.0, protocol=EMBEDDED, reference=reference)
    assert clean.sampler is not None
    for expected, changes in {
        "statistics": {"reference": reference.replace(split="test")},
        "pixels": {"sampler": clean.sampler.replace(to_uint8="truncate")},
    }.items():
        assert found(stated_faults(clean.replace(**changes), EMBEDDED)) == [expected]
    assert found(stated_faults(SampleProvenance(model="elsewhere"), EMBEDDED)) == []


def test_committed_records_have_no_finding() -> None:
    paths = [*(ROOT / "results" / "records").glob("*.json")]
    assert [x for path in paths for x in examine(str(path), EMBEDDED)] == []


# ---- the command


@pytest.mark.parametrize("name", ["a.txt", "a.npz", "a.json", "a.safetensors"])
@pytest.mark.parametrize("content", [b"plain text", b"", b"{}", None])
def test_an_unusable_file_is_one_line(
    name: str, content: bytes | None, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(doctor, [str(path)])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert name in result.stderr  # of a long path, both ends


def test_other_files_are_examined_beside_an_unusable_one(tmp_path: pathlib.Path) -> None:
    good, grey = tmp_path / "good.npz", tmp_path / "grey.npz"
    np.savez(good, PIXELS)
    np.savez(grey, PIXELS[..., 0])
    result = CliRunner().invoke(doctor, [str(grey), str(good), "--format", "csv"])
    assert result.exit_code == 2
    assert {line.split(",")[0] for line in result.stdout.splitlines()} == {"file", str(good)}
    assert "grey.npz is not a sample set: arr_0 is uint8 (20, 8, 8)" in result.stderr


def test_the_state_of_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pt"
    assert file_state(path, RECORDED) == "missing"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert file_state(path, RECORDED) == "present, checksum not recorded yet"
    assert file_state(path, f"sha256:{digest}") == "present, checksum right"
    assert "wrong checksum" in file_state(path, f"sha256:{'0' * 64}")
    (tmp_path / "weights.pt.sha256").write_text(f"{digest}  weights.pt\n")
    assert file_state(path, RECORDED) == "present, checksum right"


def test_without_files_it_lists_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    result = CliRunner().invoke(doctor, ["--format", "csv"])
    lines = result.output.splitlines()
    assert lines[0] == "kind,name,state"
    assert f"folder,cache,{tmp_path}" in lines
    assert 'weights,efficientnet-lite0,"present, checksum right"' in lines
    assert "checkpoint,cifar10-cd-lpips,missing" in lines
