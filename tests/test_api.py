"""Python for notebooks: models of one's own, records, frames, types."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from records_of import demo_record
from scipy import stats
from tiny_checkpoint import save_tiny
from torch import nn

import cmrepro
from cmrepro.records import FOLDER, read_records
from cmrepro.report.results import own_models
from cmrepro.sampling import noise, to_uint8

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


class Halved(nn.Module):
    """f(x_t, t) = x_t / 2t + a share of the class."""

    def forward(self, x_t, t, labels=None):
        shift = 0 if labels is None else labels.view(-1, 1, 1, 1) / 10
        return x_t / (2 * t.view(-1, 1, 1, 1)) + shift


@pytest.mark.parametrize("network", ["tiny", "classes"])
def test_a_wrapped_model_samples_like_the_checkpoint_that_it_is(presets, tmp_path, network):
    model = cmrepro.load(save_tiny(tmp_path / "x.safetensors", network))
    wrapped = cmrepro.wrap(
        model, image_size=8, num_classes=model.num_classes, two_step_time=0.8, model="mine"
    )
    for steps in (1, 2, [80, 3, 0.5]):
        images, same = (cmrepro.sample(m, steps, 6, seed=2) for m in (model, wrapped))
        assert np.array_equal(images, same)
        assert images.provenance.hashes == same.provenance.hashes
        assert images.provenance.sampler == same.provenance.sampler
    assert (same.provenance.model, same.provenance.checkpoint) == ("mine", None)


def test_a_wrapped_module_gets_the_suites_noise_times_and_classes():
    model = cmrepro.wrap(Halved(), image_size=8, num_classes=5)
    images = cmrepro.sample(model, 1, 3, seed=4)
    z = noise(4, range(3), (1, 3, 8, 8))[0]
    shift = torch.tensor(cmrepro.sampling.class_labels(4, range(3), 5)).view(-1, 1, 1, 1) / 10
    assert np.array_equal(images, to_uint8(z / 2 + shift, "round"))
    assert images[:2].provenance is None and repr(model) == "WrappedModel(Halved, 8 px)"


@pytest.mark.parametrize("wrong", [lambda x: x[..., :4], lambda x: x * np.nan, lambda x: [x]])
def test_a_module_that_returns_no_images_is_refused(wrong):
    class Wrong(nn.Module):
        def forward(self, x_t, t):
            return wrong(x_t)

    with pytest.raises(ValueError, match=r"at t = 80, needed is a tensor \(100, 3, 8, 8\)"):
        cmrepro.sample(cmrepro.wrap(Wrong(), image_size=8))


def test_a_record_knows_what_was_sampled_and_refuses_another_statement(tmp_path):
    model = cmrepro.wrap(Halved(), image_size=8, two_step_time=0.8, dataset="mine-train")
    images = cmrepro.sample(model, 2, 12, seed=3)
    with pytest.raises(ValueError, match=r"data set 'cifar10-jpeg-train'.*need 'mine-train'"):
        cmrepro.evaluate(images, num_images=12)  # statistics of other data must be named
    named = {"num_images": 12, "reference": "cifar10-jpeg-train"}
    record = cmrepro.evaluate(images, model="my-ect", nfe=2, seed=3, images_seen=7, **named)
    assert (record.model, record.nfe, record.seed) == ("my-ect", 2, 3)
    assert record.sampler.times == (80, 0.8)
    assert (record.training.dataset, record.training.images_seen) == ("mine-train", 7)
    assert repr(record).startswith("RunRecord(my-ect_nfe2_embedded-v1_n12_seed3_")
    assert f"<td>{record.scores['fid']:.5g}</td>" in record._repr_html_()
    for key, value in {"nfe": 1, "seed": 0, "times": [80, 0.9], "dataset": "x"}.items():
        with pytest.raises(ValueError, match=f"got {key} = .*leave it out"):
            cmrepro.evaluate(images, **named, **{key: value})
    with pytest.raises(ValueError, match="'nfes': did you mean 'nfe'"):
        cmrepro.evaluate(images, **named, nfes=2)
    with pytest.raises(ValueError, match=r"num_images is 13; allowed are 10 to 12 \(num_images\)"):
        cmrepro.evaluate(images, num_images=13)
    path = cmrepro.save(record, images, tmp_path)
    assert read_records(tmp_path / FOLDER) == [record] and path.stem == record.id
    other = cmrepro.evaluate(images[::-1].copy(), model="my-ect", nfe=2, seed=3, **named)
    with pytest.raises(ValueError, match=r"hashes\.images"):  # of the same model and seed
        cmrepro.save(other.replace(sampler=record.sampler), None, tmp_path)


def test_results_are_numbers_with_their_intervals(tmp_path):
    for seed, fid in enumerate([90.0, 92.0, 97.0]):
        cmrepro.save(demo_record("cd", 1, seed, fid), folder=tmp_path)
    [row] = cmrepro.results(tmp_path).to_dict("records")
    low, high = stats.t.interval(0.95, 2, np.mean([90, 92, 97]), stats.sem([90, 92, 97]))
    assert (row["fid"], row["fid_low"], row["fid_high"]) == pytest.approx((93, low, high))
    assert row["seeds"] == 3


def in_folder(folder, *command, **environment):
    """Output of a command in a folder, where the package comes from this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_own_model_is_reported(folder):
    """Three seeds at 1 and 2 steps of one model, beside the paper's rows of CIFAR-10."""
    models = own_models(read_records(folder / FOLDER))
    assert [(m.records[0].nfe, len(m.records), m.dataset) for m in models] == [
        (1, 3, "CIFAR-10"),
        (2, 3, "CIFAR-10"),
    ]
    assert "dataset cifar10-train in the paper, cifar10-jpeg-train" in str(models[0].agreement)
    assert "my-model" in (folder / "REPORT.md").read_text()
    assert (folder / "results/samples/my-model_nfe2.png").is_file()


def test_the_example_script_reports_an_own_model_from_an_empty_folder(tmp_path):
    out = in_folder(tmp_path, sys.executable, EXAMPLES / "own_model.py", "12")
    assert "wrote REPORT.md" in out
    assert_own_model_is_reported(tmp_path)
    assert len((EXAMPLES / "own_model.py").read_text().splitlines()) < 40


def test_the_example_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "own_model.ipynb").read_text())["cells"]
    names = {"__name__": "notebook"}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec("".join(cell["source"]).replace("2000", "12"), names)
    assert_own_model_is_reported(tmp_path)


def test_own_images_are_scored_from_folders_zips_and_npz(run, tmp_path):
    generator = np.random.default_rng(0)
    stated = ["--model", "my-model", "--trained-on", "cifar10-jpeg-train", "--images-seen", "9"]
    options = ["--num-images", 12, "--out", tmp_path]
    for seed in range(3):
        for nfe, times in ((1, "80"), (2, "80,0.8")):
            images = generator.integers(0, 256, (12, 8, 8, 3), np.uint8)
            path = tmp_path / f"{nfe}-{seed}"
            if nfe == 1:
                path.mkdir()
                for i, image in enumerate(images):
                    Image.fromarray(image).save(path / f"{i:02}.png")
            else:
                path = path.with_suffix(".npz")
                np.savez(path, images)
            how = [*stated, "--batch-size", 3, "--seed", seed, "--times", times]
            code, _, err = run("evaluate", path, *how, *options)
            assert code == 0, err
    assert run("report", "--out", tmp_path)[0] == 0
    assert_own_model_is_reported(tmp_path)
    record = read_records(tmp_path / FOLDER)[-1]
    assert (record.nfe, record.times, record.training.batch_size) == (2, (80, 0.8), 3)
    beside = tmp_path / "1-0.provenance.json"  # beside a folder, as beside an .npz or a zip
    beside.write_text('{"model": "from-json", "nfe": 4, "seed": 1}')
    assert "from-json_nfe4_" in run("evaluate", tmp_path / "1-0", *options)[1]


SCRIPT = """
import cmrepro
model = cmrepro.load("demo-cifar10-cd")
images = cmrepro.sample(model, steps=2, num_images=12, seed=0)
record = cmrepro.evaluate(images, protocol="embedded", num_images=12)
records = cmrepro.evaluate("images.npz", ["embedded", "adm"], model="my-ect", nfe=2)
fid: float = record.scores["fid"]
frame = cmrepro.results().query("nfe == 1")
path = cmrepro.report(".") / cmrepro.save(record, images)
reveal_type((model, images, record, records, frame, path))
"""


@pytest.mark.slow
def test_a_users_script_passes_mypy_strict_with_real_types(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    options = ["--strict", "--follow-imports=silent", "script.py"]
    out = in_folder(tmp_path, sys.executable, "-m", "mypy", *options, MYPYPATH=str(ROOT))
    types = re.sub(r"\w+\.", "", re.search(r'type is "(.*)"', out)[1])
    records = "RunRecord, list[RunRecord]"
    assert types == f"tuple[CheckpointModel, SampledImages, {records}, DataFrame, Path]"
