"""Sampling, records of runs, and the main job, with a network too small to matter."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from several import in_processes

from cmrepro import sampling
from cmrepro.checkpoints.io import CheckpointInfo, load_model, save_checkpoint
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.schedules import karras_times
from cmrepro.data import ImageDataset, load_dataset, synthetic
from cmrepro.experiments import reproduce as reproduce_module
from cmrepro.experiments.anchors import anchor_images
from cmrepro.experiments.reproduce import Suite, load_suite, reproduce
from cmrepro.experiments.run import (
    Origin,
    evaluate,
    read_origin,
    sampled_origin,
    write_sample_set,
)
from cmrepro.grids import write_grid
from cmrepro.metrics.protocols import load_protocol
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.records3 import read_records
from cmrepro.sampling import (
    class_labels,
    noise,
    sample,
    sampler_settings,
    to_uint8,
)

TINY = ADMConfig(32, (1,), 1, (), 32)
RECIPE = {"name": "demo-cifar10-cd", "batch_size": 32}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", (UNet, TINY))
    monkeypatch.setitem(presets.IMAGE_SIZES, "tiny", 8)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 4)


def save_tiny(path, parameterization="boundary", two_step_time=0.8, network="tiny"):
    torch.manual_seed(1)
    name, network = network, UNet(presets.PRESETS[network][1])
    for parameter in network.parameters():  # the zero-initialised output would hide everything
        torch.nn.init.normal_(parameter, std=0.1)
    info = CheckpointInfo(
        name, parameterization, 0.5, 0.002, 80.0, RECIPE, two_step_time=two_step_time
    )
    save_checkpoint(path, network, info)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny(tmp_path / "tiny-cd.safetensors")


def test_noise_of_an_image_depends_on_seed_and_number_alone():
    shape = (2, 3, 8, 8)
    together = noise(7, range(5), shape)
    assert torch.equal(noise(7, [3], shape)[:, 0], together[:, 3])
    assert not torch.equal(noise(8, [3], shape)[:, 0], together[:, 3])
    assert not torch.equal(together[:, 2], together[:, 3])
    # More draws of an image leave its first ones as they are: 1 step is the start of 2.
    assert torch.equal(noise(7, [3], (1, 3, 8, 8))[0], together[:1, 3])


def test_noise_is_standard_normal():
    z = noise(0, range(20), (2, 3, 32, 32))
    # 122,880 draws: standard errors 0.0029 of the mean and 0.0020 of the standard deviation.
    assert abs(z.mean()) < 0.012
    assert abs(z.std() - 1) < 0.008


def test_images_do_not_depend_on_how_many_are_asked_for(checkpoint):
    model = load_model(checkpoint)
    settings = sampler_settings(model.info, 2)
    few = sample(model, settings, 3, seed=5, image_size=8).stages
    many = sample(model, settings, 9, seed=5, image_size=8).stages
    for a, b in zip(few, many, strict=True):
        assert np.array_equal(a, b[:3])


def test_images_hardly_depend_on_the_batch_size(checkpoint, monkeypatch):
    model = load_model(checkpoint)
    settings = sampler_settings(model.info, 2)
    fours = sample(model, settings, 8, seed=5, image_size=8)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 3)
    threes = sample(model, settings, 8, seed=5, image_size=8)
    assert fours.noise_sha256 == threes.noise_sha256
    # A convolution of another batch may round its last bit otherwise: one level where it tips.
    difference = fours.stages[-1].astype(int) - threes.stages[-1]
    assert np.abs(difference).max() <= 1


def test_one_step_is_the_first_stage_of_two(checkpoint):
    model = load_model(checkpoint)
    one = sample(model, sampler_settings(model.info, 1), 4, seed=0, image_size=8)
    two = sample(model, sampler_settings(model.info, 2), 4, seed=0, image_size=8)
    assert len(one.stages) == 1
    assert len(two.stages) == 2
    assert np.array_equal(one.stages[0], two.stages[0])
    assert not np.array_equal(two.stages[0], two.stages[1])


def test_the_noise_of_all_steps_has_a_checksum(checkpoint):
    """That of one step is the same whether a second followed or not."""
    model = load_model(checkpoint)
    settings = [sampler_settings(model.info, steps) for steps in (1, 2)]
    one, two = (sample(model, s, 6, seed=3, image_size=8) for s in settings)
    z = noise(3, range(6), (2, 3, 8, 8)).transpose(0, 1).numpy()  # image by image
    first, both = (hashlib.sha256(z[:, :draws].tobytes()).hexdigest() for draws in (1, 2))
    assert one.noise_sha256 == [first]
    assert two.noise_sha256 == [first, both]
    assert sampled_origin(model, settings[0], 3, two).noise_sha256 == first
    assert sampled_origin(model, settings[1], 3, two).noise_sha256 == both


def test_a_denoiser_is_sampled_by_heun(tmp_path):
    model = load_model(save_tiny(tmp_path / "edm.safetensors", "edm"))
    settings = sampler_settings(model.info, 5)
    assert settings.algorithm == "heun"
    assert settings.nfe == 9
    assert settings.times == tuple(karras_times(5).tolist())
    assert sample(model, settings, 2, seed=0, image_size=8).stages[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (0, "got 0 steps"),
        (3, "names times for 1 to 2"),
        ([80.0, 80.0], "must decrease"),
        ([0.5, 80.0], "must decrease"),
        ([81.0], "allowed are times"),
        ([80.0, 0.001], "allowed are times"),
        ([], "no sampling times"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(checkpoint, steps, message):
    with pytest.raises(ValueError, match=message):
        sampler_settings(load_model(checkpoint).info, steps)


def test_two_steps_need_a_second_time(tmp_path):
    model = load_model(save_tiny(tmp_path / "x.safetensors", two_step_time=None))
    with pytest.raises(ValueError, match="names times for 1 to 1"):
        sampler_settings(model.info, 2)


def test_to_uint8_rounds_or_truncates():
    levels = torch.arange(256) / 127.5 - 1
    exact = to_uint8(levels.expand(1, 3, 1, 256), "round")
    assert exact[0, 0, :, 0].tolist() == list(range(256))
    for rule, level in [("round", 101), ("truncate", 100)]:
        assert to_uint8(torch.full((1, 3, 1, 1), -1.2), rule).max() == 0
        assert to_uint8(torch.full((1, 3, 1, 1), 1.2), rule).min() == 255
        # 100.6 of 255
        assert to_uint8(torch.full((1, 3, 1, 1), 100.6 / 127.5 - 1), rule).max() == level


def test_truncated_images_are_never_brighter_and_keep_their_rule(checkpoint):
    model = load_model(checkpoint)
    settings = sampler_settings(model.info, 2, "truncate")
    assert settings.first(1).to_uint8 == "truncate"
    truncated = sample(model, settings, 4, seed=0, image_size=8).stages[-1].astype(int)
    rounded = sample(model, sampler_settings(model.info, 2), 4, seed=0, image_size=8).stages[-1]
    assert set((rounded - truncated).ravel().tolist()) == {0, 1}
    with pytest.raises(ValueError, match="unknown rule to make images uint8 'floor'"):
        sampler_settings(model.info, 2, "floor")


CONDITIONAL = ADMConfig(32, (1,), 1, (), 32, num_classes=5)


@pytest.fixture
def conditional(tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "classes", (UNet, CONDITIONAL))
    monkeypatch.setitem(presets.IMAGE_SIZES, "classes", 8)
    return load_model(save_tiny(tmp_path / "classes.safetensors", network="classes"))


def test_classes_depend_on_seed_and_number_and_are_uniform():
    classes = class_labels(3, range(2000), 5)
    assert class_labels(3, [1234], 5) == classes[1234]
    # 400 expected of each, standard error 18.
    assert all(abs(count - 400) < 75 for count in np.bincount(classes, minlength=5))
    # Apart from the noise: the same key at counter 0 gives the noise's first draws.
    start = [np.random.Generator(np.random.Philox(key=[3, i])).integers(5) for i in range(50)]
    assert start != classes[:50].tolist()


def test_a_conditional_network_gets_the_class_of_each_image(conditional, tmp_path):
    settings = sampler_settings(conditional.info, 1)
    samples = sample(conditional, settings, 6, seed=2, image_size=8)
    assert samples.labels.tolist() == class_labels(2, range(6), 5).tolist()
    z = noise(2, range(6), (1, 3, 8, 8))[0]
    with torch.inference_mode():
        x = conditional(80 * z, torch.full((6,), 80.0), torch.from_numpy(samples.labels))
    expected = to_uint8(x, "round").astype(int)
    # Other batches may round a value that lies between two levels otherwise.
    assert np.abs(samples.stages[0] - expected).max() <= 1
    origin = sampled_origin(conditional, settings, 2, samples)
    assert origin.labels_sha256 == hashlib.sha256(samples.labels.tobytes()).hexdigest()
    write_sample_set(tmp_path / "s.npz", samples.stages[0], origin, samples.labels)
    loaded = load_dataset(tmp_path / "s.npz")
    assert read_origin(tmp_path / "s.npz", loaded).labels_sha256 == origin.labels_sha256
    assert np.array_equal(loaded.labels, samples.labels)


COUNTS = (10, 3)  # three batches for two processes, and one, so that a process has none


def sample_counts(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", (UNet, TINY))
        patch.setitem(presets.IMAGE_SIZES, "tiny", 8)
        patch.setattr(sampling, "BATCH_SIZE", 4)
        model = load_model(path)
        settings = sampler_settings(model.info, 2)
        return [sample(model, settings, count, 5, 8) for count in COUNTS]


def test_processes_share_the_batches(checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes: the same bits
    alone = sample_counts(checkpoint)
    torch.set_num_threads(threads)
    first, second = in_processes(2, sample_counts, checkpoint)
    for one, many in zip(alone, first, strict=True):
        assert many.noise_sha256 == one.noise_sha256
        for stage, other in zip(one.stages, many.stages, strict=True):
            assert np.array_equal(stage, other)
    assert [samples.stages for samples in second] == [[], []]


def test_a_sample_set_keeps_its_origin(tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    origin = Origin("model", 2, 0, {"file": "x"}, {"algorithm": "multistep"}, "noise")
    write_sample_set(tmp_path / "s.npz", images, origin)
    assert read_origin(tmp_path / "s.npz", ImageDataset("s", images)) == origin
    others = ImageDataset("s", images[::-1])
    assert read_origin(tmp_path / "s.npz", others, check=False) == origin
    with pytest.raises(ValueError, match="belongs to other images"):
        read_origin(tmp_path / "s.npz", others)
    (tmp_path / "s.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ValueError, match="is not the origin"):
        read_origin(tmp_path / "s.npz", others)
    (tmp_path / "s.json").unlink()
    assert read_origin(tmp_path / "s.npz", others) == Origin("s")


def test_grid_puts_images_in_reading_order(tmp_path):
    images = np.arange(24, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    write_grid(tmp_path / "grid.png", images.repeat(2, axis=1).repeat(2, axis=2))
    with Image.open(tmp_path / "grid.png") as grid:
        pixels = np.asarray(grid)[::4, ::4, 0]  # 2 px images, each pixel enlarged to 2 x 2
    assert pixels.tolist() == [list(range(12)), list(range(12, 24))]


def test_reproduce_writes_the_same_records_twice(tmp_path, monkeypatch):
    checkpoint = save_tiny(tmp_path / "tiny-cd.safetensors")
    suite = Suite("embedded", 12, 2, {str(checkpoint): 2})
    first = reproduce(suite, tmp_path / "a")
    second = reproduce(suite, tmp_path / "b")
    assert [(r.nfe, r.seed) for r in first] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert [r.scores for r in first] == [r.scores for r in second]
    assert [r.hashes for r in first] == [r.hashes for r in second]
    assert len({r.hashes["images"] for r in first}) == 4
    assert {r.id for r in read_records(tmp_path / "a" / "results" / "records")} == {
        r.id for r in first
    }
    grids = sorted(p.name for p in (tmp_path / "a" / "results" / "samples").iterdir())
    assert grids == ["tiny-cd_nfe1.png", "tiny-cd_nfe2.png"]
    assert any("singular" in warning for warning in first[0].warnings)


def test_the_record_of_foreign_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    source = ImageDataset("noise", images)
    [record] = evaluate(source, [load_protocol("embedded")], Origin("noise"), num_images=12)
    assert record.nfe is None
    assert record.checkpoint == {}
    assert set(record.hashes) == {"images", "features"}


def test_suites():
    suite = load_suite("cifar10", "demo")
    assert suite.num_images == load_protocol(suite.protocol).num_images
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load_suite("cifar-10", "demo")
    with pytest.raises(ValueError, match="unknown profile 'full'"):
        load_suite("cifar10", "full")


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet64"])
def test_the_papers_suites_run_what_was_released(dataset):
    suite = load_suite(dataset, "paper")
    protocol = load_protocol(suite.protocol)
    assert suite.num_images == protocol.num_images == 50_000
    assert protocol.to_uint8 == "truncate"
    for name, evaluations in suite.checkpoints.items():
        released = released_checkpoints()[name]
        assert released.dataset == f"{dataset}-train"
        assert evaluations == (1 if released.two_step_time is None else 2)


def test_a_released_checkpoint_is_converted_first(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    entry = released_checkpoints()["cifar10-cd-l2"]

    def convert(name):
        save_tiny(entry.converted, "boundary")
        return entry.converted

    monkeypatch.setattr(reproduce_module, "convert", convert)
    suite = Suite("embedded", 12, 1, {entry.name: 1})
    [record] = reproduce(suite, tmp_path)
    assert record.model == "cifar10-cd-l2"


def test_anchors_are_real_blurred_and_noise():
    dataset = synthetic(40, size=16)
    sets = anchor_images(dataset, 30, seed=0)
    real, blurred, random = sets.values()
    assert list(sets) == ["synthetic", "synthetic-blurred-5px", "uniform-noise"]
    originals = {image.tobytes() for image in dataset.images}
    assert len({image.tobytes() for image in real} & originals) == 30
    inner = real[:, 5:10, 6:11].reshape(30, 25, 3).mean(axis=1)  # the window around (7, 8)
    assert np.abs(blurred[:, 7, 8] - inner).max() <= 0.5 + 1e-4  # rounding to a whole level
    # Uniform on 0-255: standard deviation 73.9, of its estimate from 23,040 values 0.3.
    assert random.std() == pytest.approx(73.9, abs=1.2)
    with pytest.raises(ValueError, match="has 40 images, needed are 41"):
        anchor_images(dataset, 41, seed=0)
