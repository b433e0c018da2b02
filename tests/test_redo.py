"""A record made again: its commands, and what is said where something is not as it was."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from records_of import demo_record, sha256_of

from cmrepro import sampling, search
from cmrepro.checkpoints.io import CheckpointInfo, bundled_checkpoints
from cmrepro.experiments.redo import compare_redone
from cmrepro.experiments.reproduce import Suite, reproduce
from cmrepro.experiments.run import selection_parts
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_registry import bundled_references
from cmrepro.metrics.score import Scores
from cmrepro.records3 import read_record, write_record

CD, EDM = "demo-cifar10-cd", "demo-cifar10-edm"


@pytest.fixture(autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BATCH_SIZE", 4)
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """One and two steps of the bundled CD model, as the main job makes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BATCH_SIZE", 4)
        suite = Suite("embedded", 12, 1, {CD: 2})
        return reproduce(suite, tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def stored(record, folder, **changes):
    return write_record(dataclasses.replace(record, **changes), folder / "stored")


def rows_of(text):
    return {row["what"]: row for row in json.loads(text)}


@pytest.mark.parametrize("nfe", [1, 2])
def test_the_commands_are_printed_whole(run, tmp_path, records, nfe):
    record = dataclasses.replace(records[nfe - 1], uncertainty={"resamples": 30})
    code, out, err = run("redo", stored(record, tmp_path), "--out", "again")
    assert code == 0, err
    threads = record.provenance["threads"]
    times = "1" if nfe == 1 else ",".join(map(repr, record.sampler["times"]))
    samples = f"again/{CD}_nfe{nfe}_embedded-v1_n12_seed0.npz"
    assert out.splitlines() == [
        f"OMP_NUM_THREADS={threads} cmrepro sample {CD} --steps {times} --num 12 --seed 0 "
        f"--to-uint8 round --device cpu --out {samples}",
        f"OMP_NUM_THREADS={threads} cmrepro evaluate {samples} --protocol embedded --reference "
        f"cifar10-jpeg-train --num-images 12 --name {CD} --bootstrap 30 --device cpu --out again",
    ]
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("nfe", [1, 2])
def test_a_record_made_again_is_the_same(run, tmp_path, records, nfe):
    """One step was a stage of two when it was recorded, and still has the same noise."""
    path = stored(records[nfe - 1], tmp_path)
    code, out, err = run("redo", path, "--run", "--out", "again", "--format", "json")
    assert code == 0, err
    rows = rows_of(out)
    assert list(rows)[:5] == ["checkpoint", "reference", "noise", "images", "features"]
    assert {row["same"] for row in rows.values()} == {"yes"}
    assert rows["images"]["now"] == records[nfe - 1].hashes["images"]
    assert read_record(tmp_path / "again" / "results" / "records" / path.name).nfe == nfe


def test_an_altered_record_is_found_out(run, tmp_path, records):
    hashes = records[0].hashes | {"images": sha256_of("other")}
    path = stored(records[0], tmp_path, hashes=hashes)
    code, out, _ = run("redo", path, "--run", "--format", "json")
    assert code == 1
    assert [what for what, row in rows_of(out).items() if row["same"] == "no"] == ["images"]
    elsewhere = records[0].provenance | {"cpu": "Another CPU, 8 cores"}
    path = stored(records[0], tmp_path, hashes=hashes, provenance=elsewhere)
    code, out, err = run("redo", path, "--run", "--format", "json")
    assert (code, rows_of(out)["images"]["same"]) == (0, "no")
    assert "another platform (cpu Another CPU there, " in err


@pytest.mark.parametrize(("factor", "failed"), [(1 + 5e-5, False), (1 + 2e-4, True)])
def test_a_score_may_move_by_a_ten_thousandth(factor, failed):
    record = demo_record("cd", 1, 0, 100.0)
    now = dataclasses.replace(record, scores=record.scores | {"fid": 100.0 * factor})
    assert compare_redone(record, now).failed == failed


def test_a_denoiser_made_again_is_the_same(run, tmp_path):
    """Of more images sampled than scored, so that the noise is of more too."""
    assert run("sample", EDM, "--steps", 2, "--num", 14, "--seed", 7, "--out", "edm.npz")[0] == 0
    assert run("evaluate", "edm.npz", "--num-images", 12)[0] == 0
    name = f"{EDM}_nfe3_embedded-v1_n12_seed7"  # an id, of a record in results/records
    record = read_record(tmp_path / "results" / "records" / f"{name}.json")
    assert record.sampler["num_images"] == 14
    code, out, err = run("redo", name, "--run", "--format", "json")
    assert code == 0, err
    assert {row["same"] for row in rows_of(out).values()} == {"yes"}


def test_a_checkpoint_that_is_not_here(run, tmp_path, records):
    checkpoint = records[0].checkpoint | {"sha256": sha256_of("retrained")}
    path = stored(records[0], tmp_path, checkpoint=checkpoint)
    code, _, err = run("redo", path, "--run")
    assert (code, err.count("\n")) == (2, 1)
    assert f"no checkpoint {CD} with sha256 {sha256_of('retrained')}" in err
    assert f"bundled/{CD}.safetensors (another checksum), {CD}.safetensors (no such file)" in err
    assert f"(it was trained by: cmrepro train {CD} --teacher" in err


def test_a_checkpoint_that_lies_elsewhere(run, tmp_path, records):
    path = stored(records[0], tmp_path, model="mine")
    copy = tmp_path / "other.safetensors"
    shutil.copy(bundled_checkpoints()[CD], copy)
    code, _, err = run("redo", path, "--checkpoint", copy)
    assert (code, err.count("\n")) == (2, 1)
    assert "other.safetensors (another name)" in err
    copy.rename(tmp_path / "mine.safetensors")
    code, out, _ = run("redo", path, "--checkpoint", "mine.safetensors")
    assert code == 0
    assert " cmrepro sample mine.safetensors --steps 1 " in out


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("protocol", {"version": 2}, "protocol embedded has another version here than for"),
        ("reference", {"name": "own"}, "scored against 'own', which has no name here; give the"),
        ("sampler", {"clip_denoised": False}, "clip_denoised = False, 'cmrepro sample' has True"),
        ("sampler", {"times": [70.0]}, "times = [70.0], 'cmrepro sample' has [80.0]"),
    ],
)
def test_what_the_command_line_cannot_repeat(run, tmp_path, records, part, change, message):
    path = stored(records[0], tmp_path, **{part: getattr(records[0], part) | change})
    code, _, err = run("redo", path)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.fixture
def foreign(run, tmp_path):
    """The path of a record of images that were not sampled here, and these."""
    images = np.random.default_rng(0).integers(0, 256, (14, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", arr_0=images)
    reference = tmp_path / "own.npz"
    shutil.copy(bundled_references()["cifar10-jpeg-train"], reference)
    options = ["--num-images", 12, "--name", "my photos", "--reference", reference]
    assert run("evaluate", "photos.npz", *options)[0] == 0
    return tmp_path / "results" / "records" / "my-photos_embedded-v1_n12.json", images


def test_foreign_images_have_to_be_given(run, tmp_path, foreign):
    path, images = foreign
    code, _, err = run("redo", path)
    assert (code, err.count("\n")) == (2, 1)
    wanted = read_record(path).hashes["images"]
    assert f"the set 'my photos' whose first 12 images have sha256 {wanted}" in err
    given = ["--samples", "photos.npz", "--reference", "own.npz"]
    code, out, err = run("redo", path, *given, "--run", "--format", "json")
    assert code == 0, err
    assert {row["same"] for row in rows_of(out).values()} == {"yes"}
    for others in (images[:5], 255 - images):
        np.savez(tmp_path / "photos.npz", arr_0=others)
        code, _, err = run("redo", path, *given, "--run")
        assert (code, err.count("\n")) == (2, 1)
        assert "the first 12 images of photos.npz have sha256 " in err


def test_given_samples_must_say_how_they_were_sampled(run, tmp_path, records):
    path = stored(records[0], tmp_path)
    assert run("sample", CD, "--num", 12, "--out", "own.npz")[0] == 0
    code, out, _ = run("redo", path, "--samples", "own.npz")
    assert (code, out.count("\n")) == (0, 1)
    (tmp_path / "own.json").unlink()
    code, _, err = run("redo", path, "--samples", "own.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert f"no .json beside own.npz says that it was sampled as {records[0].id} was" in err


@pytest.mark.parametrize("recorded", ["", " --out here", " --out=here"])
def test_anchors_are_made_again_by_their_own_command(run, tmp_path, recorded):
    record = demo_record("cd", None, None, 1.0, checkpoint={}, sampler={}, model="real")
    command = "cmrepro anchors 'my data.zip' --seed 3"
    provenance = record.provenance | {"command": command + recorded}
    record = dataclasses.replace(record, provenance=provenance)
    code, out, _ = run("redo", stored(record, tmp_path), "--out", "again")
    assert (code, out) == (0, f"OMP_NUM_THREADS=1 {command} --out again\n")
    code, _, err = run("redo", stored(record, tmp_path), "--run")
    assert (code, err.count("\n")) == (2, 1)
    assert "no data set at 'my data.zip'" in err


def test_what_a_search_writes_is_understood(monkeypatch):
    info = CheckpointInfo("demo", "boundary", 0.5, 0.002, 80.0, {"num_scales": 6})
    path = SimpleNamespace(stem="x", name="x")
    model = SimpleNamespace(info=info, path=path, image_size=8)
    images = SimpleNamespace(stages=[np.zeros((5, 8, 8, 3), np.uint8)])
    monkeypatch.setattr(search, "sample", lambda *_, **__: images)
    monkeypatch.setattr(search, "load_reference", lambda _: None)
    monkeypatch.setattr(search, "score", lambda *_, **__: [Scores({"fid": 1.0}, 5, [], "", "")])
    protocol = load_protocol("embedded")
    found = search.search_time(model, protocol, method="grid", num_images=5, seed=1234)
    assert selection_parts(found.selection) == {
        "text": found.selection,
        "rule": "last checkpoint; second time by grid search",
        "metric": "fid",
        "seeds": [1234],
        "images": 5,
    }
    assert selection_parts("as released")["seeds"] is None
