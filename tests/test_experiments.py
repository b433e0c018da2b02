"""Runs and the main job, with a network too small to matter."""

import numpy as np
import pytest
from tiny_checkpoint import save_tiny

from cmrepro.checkpoints.load import load_model
from cmrepro.data import ImageDataset
from cmrepro.experiments.reproduce import Suite, load_suite, reproduce
from cmrepro.experiments.run import evaluate
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import SampleProvenance, read_records
from cmrepro.sampling import sample, sample_provenance, sampler_settings

pytestmark = pytest.mark.usefixtures("presets")


def test_the_main_job_twice(run, tmp_path, monkeypatch):
    """The second time other scores would be refused; it ends with scores and warnings."""
    checkpoint = save_tiny(tmp_path / "tiny-cd.safetensors")
    suite = Suite(protocol="embedded", num_images=12, seeds=2, checkpoints={str(checkpoint): 2})
    first = reproduce(suite, tmp_path / "a")
    monkeypatch.setattr("cmrepro.experiments.reproduce.load_suite", lambda *names: suite)
    code, out, err = run("reproduce", "cifar10", "--out", tmp_path / "a")
    assert code == 0, err
    mean = np.mean([r.scores["fid"] for r in first if r.nfe == 1])
    assert f"{mean:.0f}"[:3] in out.replace(",", "")
    assert "wrote 4 records" in out and str(tmp_path / "a" / "REPORT.md") in out
    assert "warning: 12 images where protocol embedded has 2,000" in err
    assert [(r.nfe, r.seed) for r in first] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert len({r.hashes.images for r in first}) == 4
    assert {r.id for r in read_records(tmp_path / "a" / "results" / "records")} == {
        r.id for r in first
    }
    grids = sorted(p.name for p in (tmp_path / "a" / "results" / "samples").iterdir())
    assert grids == ["tiny-cd_nfe1.png", "tiny-cd_nfe2.png"]


def test_second_time_rounding_and_images_make_records_of_their_own(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))
    protocol = load_protocol("embedded")
    ids = []
    for times, rounding in [((80, 0.9), "round"), ((80, 20), "round"), ((80, 0.9), "truncate")]:
        settings = sampler_settings(model.info, times, rounding)
        samples = sample(model, settings, 12, seed=0, image_size=8)
        provenance = sample_provenance(model, settings, 0, samples)
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
