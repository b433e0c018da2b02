"""Sampling: noise, stages, rounding, classes, processes, and sample sets on disk."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from several import in_processes
from tiny_checkpoint import save_tiny, tiny_presets

import cmrepro
from cmrepro import noise as noise_module
from cmrepro import sampling
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.schedules import karras_times
from cmrepro.data import ImageDataset, load_dataset
from cmrepro.files import items_sha256
from cmrepro.noise import class_labels, noise
from cmrepro.records import SampleProvenance
from cmrepro.sample_sets import provenance_path, read_provenance, write_sample_set
from cmrepro.sampling import sample, sampler_settings, to_uint8

pytestmark = pytest.mark.usefixtures("presets")


@pytest.fixture
def model(tmp_path):
    return load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))


def hashes(samples):
    return [provenance.hashes for provenance in samples.provenances]


def test_noise_of_an_image_depends_on_seed_and_number_alone():
    shape = (2, 3, 8, 8)
    together = noise(7, range(5), shape)
    assert torch.equal(noise(7, [3], shape)[:, 0], together[:, 3])
    assert not torch.equal(noise(8, [3], shape)[:, 0], together[:, 3])
    assert not torch.equal(together[:, 2], together[:, 3])
    # More draws of an image leave its first ones as they are: 1 step is the start of 2.
    assert torch.equal(noise(7, [3], (1, 3, 8, 8))[0], together[:1, 3])


def test_images_do_not_depend_on_their_number(model):
    settings = sampler_settings(model.info, 2)
    few, many = (sample(model, settings, n, seed=5, image_size=8).stages for n in (3, 9))
    for a, b in zip(few, many, strict=True):
        assert np.array_equal(a, b[:3])


def test_images_hardly_depend_on_the_batch_size(model):
    settings = sampler_settings(model.info, 2)
    fours, threes = (sample(model, settings, 8, 5, 8, batch_size=size) for size in (4, 3))
    assert hashes(fours)[0].noise == hashes(threes)[0].noise
    # A convolution of another batch may round its last bit otherwise: one level where it tips.
    assert np.abs(fours.stages[-1].astype(int) - threes.stages[-1]).max() <= 1


def test_images_in_bfloat16_are_near_those_in_float32(model):
    settings = sampler_settings(model.info, 2)
    low = settings.replace(precision="bf16")
    exact, rounded = (sample(model, s, 4, seed=5, image_size=8) for s in (settings, low))
    difference = np.abs(exact.stages[-1].astype(int) - rounded.stages[-1])
    # bfloat16 has 8 bits: errors of some levels of 255, here 3 at most; and not none.
    assert 0 < difference.max() < 12
    assert hashes(exact)[0].noise == hashes(rounded)[0].noise


def test_one_step_is_the_first_stage_of_two(model):
    settings = [sampler_settings(model.info, steps) for steps in (1, 2)]
    one, two = (sample(model, s, 6, seed=3, image_size=8) for s in settings)
    assert np.array_equal(one.stages[0], two.stages[0])
    assert not np.array_equal(two.stages[0], two.stages[1])
    z = noise(3, range(6), (2, 3, 8, 8)).transpose(0, 1).numpy()  # image by image
    first, both = (items_sha256(z[:, :draws]) for draws in (1, 2))
    assert [each.noise for each in hashes(two)] == [first, both]
    assert [two.provenances[0]] == one.provenances


@torch.inference_mode()
def heun_by_hand(denoiser, x, grid):
    """The official sampler of CIFAR-10 (jcm/sampling.py), one value at a time."""
    for t, s in itertools.pairwise([*grid, 0.0]):
        slope = (x - denoiser(x, t)) / t
        x_s = x + (s - t) * slope
        x = x + (s - t) / 2 * (slope + (x_s - denoiser(x_s, s)) / s) if s else x_s
    return x


@pytest.mark.parametrize("clipped", [False, True])
def test_a_denoiser_is_sampled_as_by_its_official_sampler(tmp_path, monkeypatch, clipped):
    """That of CIFAR-10 does not clip D, that of ImageNet-64 and LSUN does."""
    path = save_tiny(tmp_path / "edm.safetensors", parameterization="edm", rho=5.0)
    model = load_model(convert(path, tmp_path / "copy.safetensors"))  # rho included
    if clipped:
        monkeypatch.setattr(sampling, "CLIPPED_DENOISERS", ("tiny",))
    settings = sampler_settings(model.info, 5)
    assert (settings.algorithm, settings.nfe) == ("heun", 9)
    assert settings.times == tuple(karras_times(5, rho=5.0).tolist())
    images = sample(model, settings, 4, seed=0, image_size=8).stages[0].astype(int)
    z = 80 * noise(0, range(4), (1, 3, 8, 8))[0]
    free = heun_by_hand(model, z, settings.times)
    inside = heun_by_hand(lambda x, t: model(x, t).clamp(-1, 1), z, settings.times)
    same, other = (inside, free) if clipped else (free, inside)
    # Another order of sums may round a value between two levels otherwise.
    assert np.abs(images - to_uint8(same, "round").numpy()).max() <= 1
    assert np.abs(images - to_uint8(other, "round").numpy()).max() > 1
    with pytest.raises(ValueError, match="allowed is a number N >= 2"):
        sampler_settings(model.info, 1)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (0, "got steps = 0"),
        (3, "has times for 1 to 2"),
        ([81.0], "they must decrease, with 0.002 < t <= 80"),
    ],
)
def test_impossible_steps_are_refused(model, steps, message):
    with pytest.raises(ValueError, match=message):
        sampler_settings(model.info, steps)


def test_to_uint8_rounds_or_truncates():
    levels = torch.arange(256) / 127.5 - 1
    exact = to_uint8(levels.expand(1, 3, 1, 256), "round")
    assert exact[0, 0, :, 0].tolist() == list(range(256))
    for rule, level in [("round", 101), ("truncate", 100)]:
        assert to_uint8(torch.full((1, 3, 1, 1), -1.2), rule).max() == 0
        assert to_uint8(torch.full((1, 3, 1, 1), 1.2), rule).min() == 255
        # 100.6 of 255
        assert to_uint8(torch.full((1, 3, 1, 1), 100.6 / 127.5 - 1), rule).max() == level


def test_classes_depend_on_seed_and_number_and_are_uniform():
    classes = class_labels(3, range(2000), 5)
    assert class_labels(3, [1234], 5) == classes[1234]
    # 400 expected of each, standard error 18.
    assert all(abs(count - 400) < 75 for count in np.bincount(classes, minlength=5))
    # Independent of the noise, which the same key gives at counter 0.
    start = [np.random.Generator(np.random.Philox(key=[3, i])).integers(5) for i in range(50)]
    assert start != classes[:50].tolist()


def test_a_conditional_network_gets_the_class_of_each_image(tmp_path):
    model = load_model(save_tiny(tmp_path / "classes.safetensors", network="classes"))
    settings = sampler_settings(model.info, 1)
    samples = sample(model, settings, 6, seed=2, image_size=8)
    assert samples.labels.tolist() == class_labels(2, range(6), 5).tolist()
    z = noise(2, range(6), (1, 3, 8, 8))[0]
    with torch.inference_mode():
        x = model(80 * z, torch.full((6,), 80.0), torch.from_numpy(samples.labels))
    # Another batch size may round a value between two levels otherwise.
    assert np.abs(samples.stages[0] - to_uint8(x, "round").int().numpy()).max() <= 1
    [provenance] = samples.provenances
    digests = [hashlib.sha256(label.tobytes()).digest() for label in samples.labels]
    assert provenance.hashes.labels == hashlib.sha256(b"".join(digests)).hexdigest()
    write_sample_set(tmp_path / "s.npz", samples.stages[0], provenance, samples.labels)
    assert np.array_equal(load_dataset(tmp_path / "s.npz").labels, samples.labels)


COUNTS = (10, 3)  # three batches for two processes; and one, so that a process has none


def sample_counts(path, folder):
    with tiny_presets():
        model = load_model(path)
        settings = sampler_settings(model.info, 2)
        return [sample(model, settings, n, 5, 8, folder=folder / str(n)) for n in COUNTS]


def test_processes_share_the_batches(model, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes, for the same bits
    alone = sample_counts(model.path, tmp_path / "alone")
    torch.set_num_threads(threads)
    first, second = in_processes(2, sample_counts, model.path, tmp_path / "shared")
    for single, shared, other in zip(alone, first, second, strict=True):
        assert shared.provenances == other.provenances == single.provenances
        found = [each.images for each in hashes(single)]
        assert found == [items_sha256(stage) for stage in single.stages]
        for a, b in zip(single.stages, shared.stages, strict=True):
            assert np.array_equal(a, b)


def test_an_interrupted_sampling_continues(model, tmp_path, monkeypatch):
    """Killed while the images of a batch were written; another batch is damaged."""
    settings, undisturbed = sampler_settings(model.info, 2), tmp_path / "undisturbed"
    arguments = settings, 18, 5, 8
    expected = sample(model, *arguments, folder=undisturbed)
    with monkeypatch.context() as patch:
        calls = iter(range(3))
        stages = sampling._stages
        patch.setattr(sampling, "_stages", lambda *x: (next(calls), stages(*x))[1])
        with pytest.raises(StopIteration):  # at the fourth batch of five
            sample(model, *arguments, folder=tmp_path / "a")
    damaged = np.load(tmp_path / "a/stage2.npy", mmap_mode="r+")
    damaged[1, 0, 0, 0] += 1
    damaged.flush()
    first_draws = []
    fill = noise_module.fill_noise
    counted = lambda *x: (first_draws.append(x[2][0]), fill(*x))[1]  # noqa: E731
    monkeypatch.setattr(noise_module, "fill_noise", counted)
    continued = sample(model, *arguments, folder=tmp_path / "a")
    assert first_draws == [0, 12, 16]  # the damaged batch, and those that were not there
    assert replace(continued, stages=[]) == replace(expected, stages=[])
    for path in sorted(undisturbed.iterdir()):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    with pytest.raises(ValueError, match="holds a sampling of another seed; remove it"):
        sample(model, settings, 18, 6, 8, folder=tmp_path / "a")


class Small(torch.nn.Module):
    """A function that has the memory for 9 images."""

    def forward(self, x_t, t):
        if len(x_t) > 9:
            raise torch.OutOfMemoryError
        return x_t / 80


def test_a_batch_that_does_not_fit_is_halved(capsys):
    model = cmrepro.wrap(Small(), image_size=8)
    settings = sampler_settings(model.info, 1)
    halved, small = (sample(model, settings, 40, 0, 8, batch_size=size) for size in (32, 8))
    assert halved.provenances == small.provenances
    assert small.provenances[0].sampling_batch_size == 8
    assert "out of memory with 32 images at once; continuing with 16" in capsys.readouterr().err


def test_a_sample_set_has_its_provenance_beside_it(tmp_path, model):
    path, settings = tmp_path / "s.npz", sampler_settings(model.info, 1)
    samples = sample(model, settings, 3, 0, 8)
    [provenance] = samples.provenances
    write_sample_set(path, samples.stages[0], provenance)
    assert provenance_path(path).name == "s.npz.provenance.json"
    assert read_provenance(path, load_dataset(path)) == provenance
    with pytest.raises(ValueError, match="the provenance of 3 images"):
        read_provenance(path, ImageDataset("s", samples.stages[0][:2]))
    provenance_path(path).write_text('{"nfe": 1, "modell": "x"}')
    with pytest.raises(ValueError, match="unknown key 'modell': did you mean 'model'"):
        read_provenance(path, load_dataset(path))
    provenance_path(path).unlink()
    assert read_provenance(path, load_dataset(path)) == SampleProvenance(model="s")
