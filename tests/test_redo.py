"""A record made again: its commands, and the errors where something is not as it was."""

import json
import pathlib
import re

import numpy as np
import pytest
from records_of import altered, demo_record, sha256_of

from cmrepro import sampling
from cmrepro.experiments.redo import compare_redone
from cmrepro.experiments.reproduce import Suite, reproduce
from cmrepro.records import read_record, write_record

CD, EDM = "demo-cifar10-cd", "demo-cifar10-edm"


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BATCH_SIZE", 4)
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """One and two steps of the bundled CD model, as the main job makes them."""
    suite = Suite(protocol="embedded", num_images=12, seeds=1, checkpoints={CD: 2})
    return reproduce(suite, tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def stored(record, **changes):
    return write_record(altered(record, changes), pathlib.Path("stored"), overwrite=True)


def redone(run, *arguments, code=0):
    found, out, err = run("redo", *arguments, "--run", "--format", "json")
    assert found == code, err
    return {row["what"]: row for row in json.loads(out)}, err


@pytest.mark.parametrize("nfe", [1, 2])
def test_a_record_made_again_is_the_same(run, records, nfe):
    """One step was a stage of two when it was recorded, and still has the same noise."""
    record = records[nfe - 1]
    path = stored(record)
    times = "1" if nfe == 1 else ",".join(map(repr, record.sampler.times))
    samples = f"again/{record.id}.npz"
    code, out, err = run("redo", path, "--out", "again")
    assert code == 0, err
    threads = record.provenance.threads
    assert out.splitlines() == [
        f"OMP_NUM_THREADS={threads} cmrepro sample {CD} --steps {times} --num-images 12 --seed 0 "
        f"--to-uint8 round --device cpu --batch-size 4 --clip-denoised --out {samples}",
        f"OMP_NUM_THREADS={threads} cmrepro evaluate {samples} --protocol embedded --reference "
        "cifar10-jpeg-train --num-images 12 --device cpu --out again",
    ]
    rows, _ = redone(run, path, "--out", "again")
    assert list(rows)[:5] == ["checkpoint", "reference", "noise", "images", "features"]
    assert {row["same"] for row in rows.values()} == {"yes"}
    assert rows["images"]["now"] == record.hashes.images
    assert read_record(pathlib.Path("again/results/records") / path.name).nfe == nfe


def test_other_images_on_the_same_platform_are_a_failure(run, records):
    path = stored(records[0], **{"hashes.images": sha256_of("other")})
    rows, _ = redone(run, path, code=1)
    assert [what for what, row in rows.items() if row["same"] == "no"] == ["images"]
    other_cpu = {"hashes.images": sha256_of("other"), "provenance.cpu": "Another CPU, 8 cores"}
    rows, err = redone(run, stored(records[0], **other_cpu))
    assert rows["images"]["same"] == "no"
    assert "another platform (cpu Another CPU there, " in err


@pytest.mark.parametrize(("factor", "failed"), [(1 + 5e-5, False), (1 + 2e-4, True)])
def test_a_score_may_move_by_a_ten_thousandth(factor, failed):
    record, now = (demo_record("cd", 1, 0, fid) for fid in (100.0, 100.0 * factor))
    assert compare_redone(record, now).failed == failed


def test_a_denoiser_made_again_is_the_same(run):
    """With more images sampled than scored, so that the noise covers more too."""
    options = ["--steps", 2, "--num-images", 14, "--seed", 7, "--out", "edm.npz"]
    assert run("sample", EDM, *options)[0] == 0
    assert run("sample", EDM, "--clip-denoised", *options)[0] == 2  # other images: a file is there
    assert run("evaluate", "edm.npz", "--num-images", 12)[0] == 0
    [path] = pathlib.Path("results/records").iterdir()
    assert read_record(path).num_sampled == 14
    rows, _ = redone(run, path)
    assert {row["same"] for row in rows.values()} == {"yes"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "checkpoint.sha256": sha256_of("retrained"),
                "checkpoint.training.provenance.command": f"cmrepro train {CD}",
            },
            f"is not the record's .* {sha256_of('retrained')[:10]}.*by: cmrepro train {CD}",
        ),
        ({"protocol.version": 2}, "protocol embedded differs from that of .* in version;"),
        ({"checkpoint": None, "sampler": None}, "is of images from elsewhere; .* --samples"),
    ],
)
def test_irreproducible_records_are_refused(run, records, changes, message):
    code, _, err = run("redo", stored(records[0], **changes))
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(message, err), err


def test_images_from_elsewhere_have_to_be_given(run):
    images = np.random.default_rng(0).integers(0, 256, (14, 8, 8, 3), np.uint8)
    np.savez("photos.npz", arr_0=images)
    options = ["--num-images", 12, "--model", "my photos"]
    assert run("evaluate", "photos.npz", *options)[0] == 0
    [path] = pathlib.Path("results/records").iterdir()
    files = ["--samples", "photos.npz"]
    rows, _ = redone(run, path, *files)
    assert {row["same"] for row in rows.values()} == {"yes"}
    np.savez("photos.npz", arr_0=255 - images)
    code, _, err = run("redo", path, *files, "--run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the first 12 images of photos.npz have sha256 " in err


@pytest.mark.parametrize("recorded", ["", " --out here"])
def test_anchors_are_made_again_by_their_own_command(run, recorded):
    command = "cmrepro anchors 'my data.zip' --seed 3"
    record = demo_record("cd", None, None, 1.0, model="real")
    path = stored(record, **{"provenance.command": command + recorded})
    code, out, _ = run("redo", path, "--out", "again")
    assert (code, out) == (0, f"OMP_NUM_THREADS=1 {command} --out again\n")
