"""Speed of training batches against their bare reading and random numbers."""

import io
import itertools
import zipfile

import numpy as np
import torch
from PIL import Image

from cmrepro.data import opening as module
from cmrepro.data import synthetic, training_images
from cmrepro.training.data import BatchSource
from cmrepro.training.recipes import load_recipe
from cmrepro.training.step import Training

DATA = synthetic(512)
BATCH_SIZE = 128


def test_batch_over_bare_draws(benchmark, gate):
    """What is on top of noise, gathering and flipping: order, times, bookkeeping."""
    recipe = load_recipe("demo-cifar10-ct").replace(batch_size=BATCH_SIZE)
    source, steps = BatchSource(DATA, recipe, 0), itertools.count()
    rng = np.random.default_rng(0)

    def bare():
        torch.randn(BATCH_SIZE, 3, 32, 32)
        images = DATA.images[rng.integers(0, len(DATA.images), BATCH_SIZE)]
        images[::2] = images[::2, :, ::-1]

    def ours():
        for _ in range(10):  # times of a millisecond are too short to compare
            source.batch(next(steps))

    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    gate.ratio("batch over bare draws", ours, lambda: [bare() for _ in range(10)], at_most=1.5)


def test_decoding_over_pillow(benchmark, gate, tmp_path, monkeypatch):
    """Batches from a zip of PNG files, against Pillow on the same files."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, image in enumerate(synthetic(BATCH_SIZE, 64).images):
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "png")
            archive.writestr(f"{i:05}.png", encoded.getvalue())
    monkeypatch.setattr(module, "MAX_BYTES_IN_MEMORY", 0)  # as a set too large for the memory
    images = training_images(path, 64)
    numbers = np.random.default_rng(0).permutation(BATCH_SIZE)

    def ours():
        return images.take(numbers)

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

        def pillow():
            files = [archive.read(names[i]) for i in numbers]
            return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])

        decoded = benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
        np.testing.assert_array_equal(decoded, pillow())
        gate.bound("decoding over Pillow", ours, pillow, at_most=1.7)


def test_batch_over_step(benchmark, gate):
    """The preparation of a batch runs beside the steps and must not hold them up."""
    recipe = load_recipe("demo-cifar10-ct").replace(distance="l2", batch_size=16)
    training = Training(recipe, seed=0)
    training.step = 1000
    source, steps = BatchSource(DATA, recipe, 0), itertools.count()
    batch = source.batch(training.step)
    benchmark.pedantic(lambda: source.batch(next(steps)), rounds=5, warmup_rounds=1)
    gate.bound(
        "batch over a step",
        lambda: source.batch(next(steps)),
        lambda: training.train_step(batch),
        at_most=0.2,
        pairs=5,
    )
