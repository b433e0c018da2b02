"""Surroundings of a run: what must come of each, with which exit code."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from records_of import demo_record

from cmrepro.data import ImageDataset
from cmrepro.files import cache_folder, locked
from cmrepro.records import FOLDER, write_record
from cmrepro.sample_sets import provenance_path, read_provenance

BIG, LONG, DEEP = 1 << 64, "x" * 5000, "[" * 100_000
CD, CT = "demo-cifar10-cd", "demo-cifar10-ct"


@pytest.fixture
def around(tmp_path, monkeypatch):
    """A home folder and working folder with records and files of other programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CMREPRO_CACHE", "~/file/cache")
    path = write_record(demo_record("cd", 1, 0, 1.0), tmp_path / FOLDER)
    for name, text in {"a": "null", "b": '{"prompt": "cat"}', "._" + path.stem: "\0"}.items():
        path.with_name(f"{name}.json").write_text(text)
    (tmp_path / "file").touch()
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "deep.toml").write_text(f"a = {DEEP}")
    (tmp_path / "REPORT.md").write_bytes(b"M\xfcller")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("claims --format csv --out ~", 0, "song2023"),
        ("claims --out=~/nope", 2, "{folder}/nope"),
        ("records validate deep.json", 1, "deep.json cannot be read as JSON"),
        ("records validate results/records", 0, "valid records: 1"),
        ("report", 2, "REPORT.md is not by cmrepro"),
        ("evaluate cifar10-train", 2, "cannot write {folder}/file/cache: not a directory; set"),
        (f"evaluate synthetic --seed {BIG}", 2, f"{BIG} is not in the range"),
        (f"sample {CD} --out x.npz --num-images {BIG}", 2, "is not in the range"),
        (f"train {CT} --seed {BIG}", 2, "is not in the range"),
        (f"train {CT} --set batch_size={BIG}", 2, "batch_size"),
        (f"train {CT} --set batch_size={DEEP}", 2, "batch_size"),
        (f"train {CT} --sample-every -1", 2, "-1 is not in the range"),
        ("evaluate synthetic --protocol deep.toml", 2, "deep.toml cannot be read as TOML"),
        ("evaluate synthetic --times nan", 2, "got times[0] = NaN"),
        ("evaluate synthetic --model a/b", 2, "model"),
        (f"evaluate synthetic --model {LONG}", 2, "model"),
        (f"evaluate {LONG}", 2, "no data set at 'xxx"),
        (f"claims {LONG}", 2, "unknown claim"),
        (f"doctor {LONG}", 2, "xxx"),
    ],
)
def test_a_command_ends_in_a_line(run, around, command, code, text):
    found, out, err = run(*command.split())
    assert found == code
    assert text.format(folder=around) in out + err
    assert err.count("\n") <= 1
    assert len(err) < 300


@pytest.mark.parametrize("command", ["reproduce cifar10", f"train {CT} --data synthetic"])
def test_a_second_run_in_a_folder_is_refused(run, tmp_path, command):
    folder = tmp_path / ("results" if "reproduce" in command else "")
    with locked(folder):
        code, _, err = run(*command.split(), "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "another run writes to" in err
    assert [path.name for path in folder.iterdir()] == [".cmrepro.lock"]
    with locked(folder):  # free again
        pass


@pytest.mark.parametrize(
    ("streams", "code", "errors"),
    [(">&-", 0, 0), ("2>&-", 0, 0), (">&- 2>&-", 0, 0), ("| true", 1, 0), (">/dev/full", 2, 1)],
)
def test_closed_and_full_streams(streams, code, errors):
    line = f"set -o pipefail; {sys.executable} -m cmrepro claims --format json {streams}"
    found = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr.count("\n")) == (code, errors), found.stderr


def test_a_foreign_json_beside_samples_is_ignored(around, capsys):
    images = ImageDataset("m", np.zeros((1, 2, 2, 3), np.uint8))
    beside = provenance_path(pathlib.Path("~/m.npz"))
    assert beside == around / "m.npz.provenance.json"
    for fields in ({"prompt": "cat"}, None, []):
        beside.write_text(json.dumps(fields))
        assert read_provenance(pathlib.Path("m.npz"), images).model == "m"
        assert "ignored" in capsys.readouterr().err
    beside.write_text('{"nfe": 2}')  # one of ours, with a fault
    with pytest.raises(ValueError, match="'model' is missing"):
        read_provenance(pathlib.Path("m.npz"), images)


def test_the_cache_is_below_the_home_folder(around):
    assert cache_folder() == around / "file" / "cache"
