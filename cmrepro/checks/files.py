"""Causes of a wrong score in a sample set, a checkpoint or a record."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrepro.checkpoints.load import load_model
from cmrepro.data import ImageSource, open_images
from cmrepro.data.sources import CHUNK_IMAGES
from cmrepro.metrics.extractors import extract, load_extractor
from cmrepro.metrics.frechet import fid_of_features
from cmrepro.metrics.references import load_reference
from cmrepro.records import RunRecord, SampleProvenance, read_record
from cmrepro.sample_sets import read_provenance
from cmrepro.settings import Protocol

NUM_FEATURES = 500  # images whose features are extracted: a fault moves FID whatever their number
SEED = 0

FID_LIMIT = 0.02  # relative change by chance; swapped channels of real images cost 4 to 13 %
DUPLICATES_LIMIT = 0.005  # CIFAR-10 has below 0.001

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Finding:
    """Cause of a wrong score, and the evidence for it."""

    finding: str
    certainty: str  # "certain", or "likely" where clean inputs may, rarely, give the same
    measured: str  # measurement or statement
    expected: str  # its value for clean inputs
    advice: str


def examine(
    file: str, protocol: Protocol, reference: str | None = None, device: str = "cpu"
) -> list[Finding]:
    """Findings of a file; a checkpoint has none if it can be loaded."""
    path = Path(file)
    if path.suffix == ".json":
        return [*stated_faults(record := read_record(path), record.protocol)]
    is_diffusers = any(path.glob("**/diffusion_pytorch_model*"))
    if path.suffix in (".npz", ".npy", ".zip") or (path.is_dir() and not is_diffusers):
        images = open_images(file)
        stated = stated_faults(read_provenance(path, images), protocol)
        return [*image_faults(images, protocol, reference, device), *stated]
    load_model(file)
    return []


def stated_faults(samples: SampleProvenance, protocol: Protocol) -> Iterator[Finding]:
    """Faults that the provenance of a sample set, or a record, states."""
    rounding = samples.sampler.to_uint8 if samples.sampler else None
    if rounding and protocol.to_uint8 not in (rounding, "as given"):
        cause = "pixels truncated where the protocol rounds, or the reverse"
        fix = f"sample with --to-uint8 {protocol.to_uint8}"
        yield Finding(cause, "certain", f"to_uint8: {rounding}", protocol.to_uint8, fix)
    if isinstance(samples, RunRecord) and samples.checkpoint and samples.checkpoint.training:
        dataset, _, split = samples.checkpoint.training.dataset.rpartition("-")  # "cifar10-train"
        reference = samples.reference
        if reference.dataset == dataset and reference.split not in (None, split):
            cause = "statistics of the other split than the one trained on"
            fix = "score against the split that the protocol names: `cmrepro references list`"
            found = f"reference of split {reference.split}"
            yield Finding(cause, "certain", found, split, fix)


def image_faults(
    source: ImageSource, protocol: Protocol, reference_name: str | None = None, device: str = "cpu"
) -> Iterator[Finding]:
    """Faults of the images themselves; by default with the protocol's reference."""
    reference = load_reference(protocol, reference_name)
    numbers = np.random.default_rng(SEED).permutation(source.num_images)[:NUM_FEATURES]
    images = source.take(np.sort(numbers))
    digests = {
        hashlib.sha256(image.tobytes()).digest()
        for batch in source.batches(CHUNK_IMAGES)
        for image in batch
    }
    num_repeated = source.num_images - len(digests)
    yield from value_range(images)
    network = load_extractor(protocol.extractor, device)
    fid, swapped = (
        fid_of_features(extract(x, network).features, reference.mu, reference.sigma)
        for x in (images, images[..., ::-1].copy())
    )
    yield from channel_order(fid, swapped)
    if num_repeated >= DUPLICATES_LIMIT * source.num_images:
        found = f"{num_repeated:,} of {source.num_images:,} images equal an earlier one"
        fix = "give each process and batch its own seed, and sample again"
        expected = f"below {DUPLICATES_LIMIT:.1%}"
        yield Finding("duplicate images", "certain", found, expected, fix)


def value_range(images: Images) -> Iterator[Finding]:
    """Values of another range made uint8 (N, H, W, 3).

    Floats in [0, 1] or [-1, 1] that are cast have the values 0, 1 and 255 alone. Floats in [0, 1]
    taken for [-1, 1] leave the levels below 127 empty, and floats in [-1, 1] taken for [0, 1] put
    the dark half to 0. Of the values of CIFAR-10 images 0.5 % are 0 or 1, 1 % are 255 and half are
    below 127; the limits leave room for dark or bright data.
    """
    shares = np.bincount(images.ravel(), minlength=256) / images.size
    ends, dark, zero = shares[[0, 1, 255]].sum(), shares[:127].sum(), shares[0]
    for fault, certainty, measured, expected in (
        (ends > 0.9, "certain", f"{ends:.1%} of the values are 0, 1 or 255", "below 90 %"),
        (dark < 0.001, "certain", f"{dark:.2%} of the values are below 127", "above 0.1 %"),
        (zero > 0.25, "likely", f"{zero:.1%} of the values are 0", "below 25 %"),
    ):
        if fault:
            cause = "pixels in [0, 1] or [-1, 1] read as another range"
            fix = "make uint8 from [-1, 1] by 127.5 x + 127.5 and from [0, 1] by 255 x"
            yield Finding(cause, certainty, measured, expected, fix)
            return


def channel_order(fid: float, swapped: float) -> Iterator[Finding]:
    """Red and blue swapped: FID falls when they are swapped back."""
    if fid / swapped - 1 >= FID_LIMIT:
        found = f"fid {fid:.1f}, {swapped:.1f} with red and blue swapped"
        fix = "reverse the last axis of the images; OpenCV reads and writes BGR"
        expected = f"falls by less than {FID_LIMIT:.0%}"
        yield Finding("red and blue swapped (BGR)", "likely", found, expected, fix)
