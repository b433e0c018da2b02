"""Python for notebooks, and models of one's own: from a module or images to a report."""

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
from cmrepro.noise import class_labels, noise
from cmrepro.records import FOLDER, read_records
from cmrepro.report.results import own_table
from cmrepro.sampling import to_uint8
from cmrepro.training.recipes import load_recipe

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


class Half(nn.Module):
    """x_t / 2t and a tenth of the class."""

    def forward(self, x_t, t, labels):
        return x_t / (2 * t.view(-1, 1, 1, 1)) + labels.view(-1, 1, 1, 1) / 10


def test_a_wrapped_module_gets_the_suites_noise_times_and_classes(presets, tmp_path):
    images = cmrepro.sample(cmrepro.wrap(Half(), image_size=8, num_classes=5), 1, 3, seed=4)
    z, labels = noise(4, range(3), (1, 3, 8, 8))[0], torch.tensor(class_labels(4, range(3), 5))
    expected = z / 2 + labels.view(-1, 1, 1, 1) / 10
    assert np.array_equal(images, to_uint8(expected, "round")) and images[:2].provenance is None
    model = cmrepro.load(save_tiny(tmp_path / "x.safetensors"))
    wrapped = cmrepro.wrap(model, image_size=8, two_step_time=0.8, model="mine")
    for steps in (2, [80, 3, 0.5]):  # as a checkpoint's model, the same module samples the same
        images, same = (cmrepro.sample(m, steps, 6, seed=2) for m in (model, wrapped))
        assert np.array_equal(images, same)
        changes = {"model": "mine", "checkpoint": None}
        assert images.provenance.replace(**changes) == same.provenance


@pytest.mark.parametrize("wrong", [lambda x: x[..., :4], lambda x: x * np.nan, lambda x: [x]])
def test_a_module_that_returns_no_images_is_refused(wrong):
    module = Half()
    module.forward = lambda x_t, t: wrong(x_t)
    with pytest.raises(ValueError, match=r"at t = 80, needed is a tensor \(32, 3, 8, 8\)"):
        cmrepro.sample(cmrepro.wrap(module, image_size=8))


def test_a_record_knows_what_was_sampled_and_refuses_another_statement(tmp_path):
    model = cmrepro.wrap(Half(), image_size=8, num_classes=2, dataset="mine-train")
    images = cmrepro.sample(model, [80, 0.8], 12, seed=3)
    with pytest.raises(ValueError, match="need 'mine-train'"):
        cmrepro.evaluate(images, num_images=12)  # statistics of other data must be named
    named = {"num_images": 12, "reference": "cifar10-jpeg-train"}
    record = cmrepro.evaluate(images, model="my-ect", nfe=2, images_seen=7, **named)
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
    with pytest.raises(ValueError, match="num_images is 13; allowed are 10 or more"):
        cmrepro.evaluate(images, num_images=13)
    cmrepro.save(record, images, tmp_path)
    assert read_records(tmp_path / FOLDER) == [record]
    other = record.replace(hashes=record.hashes.replace(images="0" * 64))
    with pytest.raises(ValueError, match=r"differs in hashes\.images"):  # of one model and seed
        cmrepro.save(other, folder=tmp_path)


def test_results_are_numbers_with_their_intervals(tmp_path):
    for seed, fid in enumerate([90.0, 92.0, 97.0]):
        for name in ("a", "b"):  # models without a checkpoint are told apart by their names
            record = demo_record("cd", 1, seed, fid, model=name, checkpoint=None)
            cmrepro.save(record, folder=tmp_path)
    row, _ = cmrepro.results(tmp_path).to_dict("records")
    low, high = stats.t.interval(0.95, 2, 93, stats.sem([90, 92, 97]))
    assert (row["fid"], row["fid_low"], row["fid_high"]) == pytest.approx((93, low, high))


def in_folder(folder, *command, **environment):
    """Output of a command in a folder, where the package comes from this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_own_model_is_reported(folder):
    """One model at 1 and 2 steps with 3 seeds, beside the paper's rows of CIFAR-10."""
    rows, notes = own_table(read_records(folder / FOLDER))
    found = [(row["nfe"], row["n"], row["paper's FID"], row["verdict"]) for row in rows]
    assert found == [
        (1, "3 x 12", "CD 3.55, CT 8.70", "not comparable"),
        (2, "3 x 12", "CD 2.93, CT 5.83", "not comparable"),
    ]
    assert "dataset cifar10-train in the paper, cifar10-jpeg-train here" in notes
    assert "my-model" in (folder / "REPORT.md").read_text()
    assert (folder / "results/samples/my-model_nfe2.png").is_file()


def test_the_example_script_reports_an_own_model_from_an_empty_folder(tmp_path):
    script = EXAMPLES / "own_model.py"
    assert "wrote REPORT.md" in in_folder(tmp_path, sys.executable, script, "12")
    assert_own_model_is_reported(tmp_path)
    assert len(script.read_text().splitlines()) < 40


def test_the_example_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cell in json.loads((EXAMPLES / "own_model.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("2000", "12"), names := locals())
    assert names["record"].nfe == 2
    assert_own_model_is_reported(tmp_path)


def test_own_images_and_claims_are_reported_by_the_command_line(run, tmp_path):
    generator, out = np.random.default_rng(0), ["--out", tmp_path]
    stated = ["--model", "my-model", "--trained-on", "cifar10-jpeg-train", "--images-seen", 9]
    folder = tmp_path / "pngs"
    folder.mkdir()
    for seed in range(3):
        images = generator.integers(0, 256, (12, 8, 8, 3), np.uint8)
        np.savez(tmp_path / "x.npz", images)
        for i, image in enumerate(images):
            Image.fromarray(255 - image).save(folder / f"{i:02}.png")
        for source, times in ((folder, "80"), (tmp_path / "x.npz", "80,0.8")):
            how = [*stated, "--batch-size", 3, "--seed", seed, "--times", times, *out]
            code, _, err = run("evaluate", source, "--num-images", 12, *how)
            assert code == 0, err
    own = ["--claims", EXAMPLES / "my-claims.toml"]
    assert run("report", *own, *out)[0] == 0
    assert_own_model_is_reported(tmp_path)
    record = read_records(tmp_path / FOLDER)[-1]
    assert (record.times, record.training.batch_size) == ((80, 0.8), 3)
    [claim] = json.loads(
        run("claims", "my-model/2-steps-better-than-1", *own, *out, "--format", "json")[1]
    )
    assert claim["verdict"] in ("inconclusive", "reproduced", "not reproduced")
    assert claim["seeds"] == 3 and "my-model" in (tmp_path / "REPORT.md").read_text()
    # After the command the paper's claims are alone again.
    assert cmrepro.claims(tmp_path)["id"].str.startswith("song2023/").all()
    beside = tmp_path / "pngs.provenance.json"  # beside a folder, as beside an .npz or a zip
    beside.write_text('{"model": "from-json", "nfe": 4, "seed": 1}')
    assert "from-json_nfe4_" in run("evaluate", folder, "--num-images", 12, *out)[1]


def test_a_recipe_of_ones_own_is_read_by_path(tmp_path):
    recipe, path = load_recipe("demo-cifar10-ct"), tmp_path / "my.toml"
    keys = ("network", "method", "distance", "mu0", "s0", "s1", "initialisation", "ema_rate")
    lines = [f"{key} = {json.dumps(getattr(recipe, key))}" for key in keys]
    lines += ['dataset = "mine"', "batch_size = 2", "total_steps = 1", "learning_rate = 1e-4"]
    path.write_text("\n".join(["[recipes.my-ct]", *lines]))
    own = load_recipe(str(path))
    assert (own.name, own.stands_for, own.sigma_max) == ("my-ct", "my-ct", recipe.sigma_max)
    path.write_text(path.read_text().replace("1e-4", "0.0"))
    with pytest.raises(ValueError, match=r"my\.toml: got learning_rate = 0"):
        load_recipe(str(path))


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
