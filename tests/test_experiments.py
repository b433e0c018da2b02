"""Runs and the main job, with a network too small to matter."""

import itertools
import multiprocessing
import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import files_below
from tiny_checkpoint import save_tiny, tiny_presets
from torch import nn

from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import CheckpointModel, load_model
from cmrepro.consistency.distances import DISTANCES, pseudo_huber
from cmrepro.data import ImageDataset, synthetic
from cmrepro.experiments import reproduce as experiment
from cmrepro.experiments import theorems
from cmrepro.experiments.reproduce import Suite, load_suite, reproduce
from cmrepro.experiments.run import evaluate
from cmrepro.metrics.extractors import FeatureExtractor
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import FOLDER, SampleProvenance, TheoremCheck, differences, read_records
from cmrepro.sampling import sample, sampler_settings
from cmrepro.search import TimeSearch
from cmrepro.settings import Selection
from cmrepro.training import suite as trainings
from cmrepro.training import trajectory
from cmrepro.training.suite import is_trained, run_name, train_suite

pytestmark = pytest.mark.usefixtures("presets")


def test_the_main_job_twice(run, tmp_path, monkeypatch):
    """The second sampling time is searched once, and no record is made twice."""
    selection = Selection(rule="least fid", num_images=12)
    found = iter([TimeSearch([], 0.8, selection)])
    monkeypatch.setattr(experiment, "search_time", lambda *others, **options: next(found))
    checkpoint = save_tiny(tmp_path / "tiny-cd.safetensors", two_step_time=None)
    suite = Suite(protocol="embedded", num_images=12, seeds=2, checkpoints={str(checkpoint): 2})
    first = reproduce(suite, tmp_path / "a")
    assert {r.checkpoint.two_step_selection for r in first} == {selection}
    monkeypatch.setattr(experiment, "load_suite", lambda *names: suite)
    monkeypatch.setattr(experiment, "sample", None)
    fitted = {"interval": (0.9, 1.1), "num_scales": (33, 65), "errors": (2.0, 1.0)}
    check = TheoremCheck(id="theorem3", data="ring", value=1.0, **fitted)
    monkeypatch.setattr(theorems, "check_theorems", lambda: [check])
    code, out, err = run("reproduce", "cifar10", "--out", tmp_path / "a")
    assert code == 0, err
    assert "\n## Theorems\n" in (tmp_path / "a" / "REPORT.md").read_text()
    mean = np.mean([r.scores["fid"] for r in first if r.nfe == 1])
    assert f"{mean:.0f}"[:3] in out.replace(",", "")
    assert "wrote 4 records" in out and str(tmp_path / "a" / "REPORT.md") in out
    assert "warning: 12 images where protocol embedded has 2,000" in err
    assert [(r.nfe, r.seed) for r in first] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert len({r.hashes.images for r in first}) == 4
    assert {r.id for r in read_records(tmp_path / "a" / FOLDER)} == {r.id for r in first}
    assert [*(tmp_path / "a" / experiment.SAMPLE_SETS).iterdir()] == []
    grids = sorted(p.name for p in (tmp_path / "a" / "results" / "samples").iterdir())
    assert grids == ["tiny-cd_nfe1.png", "tiny-cd_nfe2.png"]


def test_a_model_that_was_trained_longer_is_searched_again(tmp_path, monkeypatch):
    selection = Selection(rule="least fid", num_images=12)
    found = iter([TimeSearch([], time, selection) for time in (0.8, 0.4)])
    monkeypatch.setattr(experiment, "search_time", lambda *others, **options: next(found))
    training = {
        "method": "cd",
        "scale": "demo",
        "stands_for": "cifar10-cd",
        "dataset": "synthetic",
    }
    path, times = tmp_path / "tiny-cd.safetensors", []
    suite = Suite(protocol="embedded", num_images=12, seeds=1, checkpoints={str(path): 2})
    for images_seen in (4, 4, 8):
        trained = training | {"images_seen": images_seen}
        save_tiny(path, two_step_time=None, training=trained)
        copy = experiment.with_second_time(
            str(path), load_protocol("embedded"), suite, tmp_path / "out", "cpu"
        )
        times.append(read_info(copy).two_step_time)
    assert times == [0.8, 0.8, 0.4]


def job(suite: Suite, out: pathlib.Path, kill_at: int) -> None:
    """The main job in a process that is killed at the k-th call of the sampled or scoring network.

    Calls of the sampled network are counted in the file out/calls.
    """
    torch.set_num_threads(1)
    calls = itertools.count(1)

    def counted(module: nn.Module, x: torch.Tensor, *others: Any) -> Any:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(module, CheckpointModel):
            with open(out / "calls", "a") as file:
                file.write("x")
        return forwards[type(module)](module, x, *others)

    forwards = {kind: kind.forward for kind in (CheckpointModel, FeatureExtractor)}
    for kind in forwards:
        kind.forward = lambda self, x, *o, labels=None: counted(self, x, *o)
    protocol = load_protocol("embedded").replace(metrics=("is",))  # takes no second to score
    experiment.load_protocol = lambda name: protocol
    with tiny_presets():
        reproduce(suite, out, keep_samples=True)


@pytest.mark.slow  # a process that imports torch
def test_a_killed_job_goes_on_where_it_stopped(tmp_path):
    """Killed in the second of three batches, and between the scores of both steps."""
    checkpoint = save_tiny(tmp_path / "tiny-cd.safetensors")
    suite = Suite(protocol="embedded", num_images=12, seeds=2, checkpoints={str(checkpoint): 2})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cmrepro.experiments.reproduce"])
    for name, kills in {"whole": [0], "killed": [4, 6, 0]}.items():
        (tmp_path / name).mkdir()
        for kill_at in kills:
            process = context.Process(target=job, args=(suite, tmp_path / name, kill_at))
            process.start()
            process.join()
            assert process.exitcode == (-signal.SIGKILL if kill_at else 0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pairs = zip(*(read_records(out / FOLDER) for out in (whole, killed)), strict=True)
    keys = {key for a, b in pairs for key in differences(a, b)}
    assert all(key.startswith(("durations_s", "provenance")) for key in keys)
    assert files_below(whole) == files_below(killed)
    for file in [*whole.rglob("*.npy"), *whole.rglob("*.png")]:
        assert (killed / file.relative_to(whole)).read_bytes() == file.read_bytes()
    calls = [len((out / "calls").read_text()) for out in (whole, killed)]
    assert calls[0] == 2 * 3 * 2
    # The killed batch's first call again, and its predecessor's 2 if it was not yet written.
    assert calls[1] - calls[0] in (1, 3)


def test_second_time_rounding_and_images_make_records_of_their_own(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))
    protocol = load_protocol("embedded")
    ids = []
    for times, rounding in [((80, 0.9), "round"), ((80, 20), "round"), ((80, 0.9), "truncate")]:
        settings = sampler_settings(model.info, times, rounding)
        samples = sample(model, settings, 12, seed=0, image_size=8)
        provenance = samples.provenances[-1]
        images = ImageDataset("x", samples.stages[-1])
        ids += [record.id for record in evaluate(images, [protocol], provenance, num_images=12)]
    for images in (samples.stages[0], samples.stages[1]):
        source = ImageDataset("x", images)
        [record] = evaluate(source, [protocol], SampleProvenance(model="x"), num_images=12)
        assert (record.nfe, record.checkpoint, record.hashes.noise) == (None, None, None)
        ids.append(record.id)
    assert len(set(ids)) == 5
    with pytest.raises(ValueError, match="provenance beside 'x' is that of other images"):
        foreign = provenance.replace(num_sampled=12, hashes={"images": "0" * 64})
        evaluate(source, [protocol], foreign, num_images=12)


def test_suites():
    suite = load_suite("cifar10", "demo")
    assert suite.num_images == load_protocol(suite.protocol).num_images
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_suite("cifar-10", "demo")
    with pytest.raises(ValueError, match="imagenet64 has no profile 'demo'; give --profile paper"):
        load_suite("imagenet64", "demo")


SMALL = {"network": "tiny", "batch_size": 4, "total_steps": 3, "linear_decay_share": None}


@pytest.mark.parametrize("profile", ["family", "ablations", "ablation-rates", "paper-ablations"])
def test_suites_train_what_they_name(profile, tmp_path, monkeypatch):
    """Each recipe for 3 tiny steps, from its teacher; again, only what was not finished."""
    suite, runs = load_suite("cifar10", profile), []
    plans = suite.trainings
    original = trainings.train

    def counted(training, images, folder, **options):
        runs.append((options["name"], training.seed))
        return original(training, images, folder, sample_every=0, **options)

    edm = save_tiny(tmp_path / "edm.safetensors", parameterization="edm", recipe=None)
    monkeypatch.setattr(trainings, "train", counted)
    monkeypatch.setattr(
        trainings, "load_model", lambda name, device: load_model(name if "/" in name else edm)
    )
    monkeypatch.setattr(trainings, "training_images", lambda *arguments: synthetic(10, 8))
    monkeypatch.setattr(trajectory, "NUM_TRAJECTORIES", 2)
    for name in ("lpips", "efficientnet"):  # without their networks
        monkeypatch.setitem(DISTANCES, name, lambda: pseudo_huber)
    found = train_suite(suite, tmp_path, "synthetic", SMALL)
    expected = [(name, seed) for name, plan in plans.items() for seed in plan.training_seeds]
    assert runs == expected
    assert [*found.values()] == [plans[n].steps for n, _ in expected if plans[n].steps]
    for name, seed in expected:
        plan, run = plans[name], run_name(name, seed)
        head = read_info(tmp_path / "training" / run / f"{name}.safetensors")
        recipe, changes = head.recipe, suite.changes | plan.changes | SMALL
        assert all(getattr(recipe, k) == (None if v == "none" else v) for k, v in changes.items())
        teacher = plan.teacher if plan.teacher in plans else plan.teacher and "edm"
        assert (head.training.teacher, head.training.seed) == (teacher, seed)
        assert (tmp_path / f"results/training/{run}.jsonl").stat().st_size
    last, seed = expected[-1]
    path = tmp_path / "training" / run_name(last, seed) / f"{last}.safetensors"
    path.unlink()
    runs.clear()
    assert train_suite(suite, tmp_path, "synthetic", SMALL) == found and runs == expected[-1:]
    assert is_trained(path, read_info(path).recipe, seed)
    assert not is_trained(path, read_info(path).recipe, seed + 1)
