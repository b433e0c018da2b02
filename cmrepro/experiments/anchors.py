"""Anchors of a protocol's scale: scores of real images, of the same images blurred, of noise."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from cmrepro.data import ImageDataset
from cmrepro.experiments.run import evaluate
from cmrepro.records import NOISE, RunRecord, SampleProvenance
from cmrepro.settings import Protocol

BLUR_WIDTH = 5


def anchor_images(
    dataset: ImageDataset, num_images: int, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """Sample sets by name: random real images, the same with means of 5 x 5 pixels, noise."""
    count = len(dataset.images)
    if count < num_images:
        needed = f"needed are {num_images:,}; give a larger data set"
        raise ValueError(f"'{dataset.name}' has {count:,} images, {needed}")
    generator = np.random.default_rng(seed)
    subset = dataset.images[generator.permutation(count)[:num_images]]
    window = (1, BLUR_WIDTH, BLUR_WIDTH, 1)
    blurred = uniform_filter(subset.astype(np.float32), window, mode="nearest").round()
    return {
        dataset.name: subset,
        f"{dataset.name}-blurred-{BLUR_WIDTH}px": blurred.astype(np.uint8),
        NOISE: generator.integers(0, 256, subset.shape, np.uint8),
    }


def anchor_records(dataset: ImageDataset, protocol: Protocol, seed: int) -> list[RunRecord]:
    """One record an anchor, each of the number of images that the protocol needs."""
    records = []
    for name, images in anchor_images(dataset, protocol.num_images, seed).items():
        source = ImageDataset(name, images)
        records += evaluate(source, [protocol], SampleProvenance(model=name), progress=True)
    return records
