"""Faults of sample sets: number, value range, channel order, duplicates."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from cmrepro.checks.findings import Finding, Findings, finding_if, too_few_images
from cmrepro.data import ImageSource
from cmrepro.metrics.extractors import extract, load_extractor
from cmrepro.metrics.frechet import fid_of_features
from cmrepro.metrics.references import load_reference
from cmrepro.settings import Protocol

NUM_FEATURES = 500  # images whose features are extracted: a fault moves FID whatever their number
SEED = 0

FID_LIMIT = 0.02  # relative change by chance; swapped channels of real images cost 4 to 13 %
DUPLICATES_LIMIT = 0.005  # CIFAR-10 has below 0.001

Images = NDArray[np.uint8]


def examine_images(
    source: ImageSource, protocol: Protocol, reference_name: str | None = None, device: str = "cpu"
) -> Findings:
    """Check a sample set, without its provenance; by default with the protocol's reference."""
    reference = load_reference(protocol, reference_name)
    images, num_repeated = _read(source)
    network = load_extractor(protocol.extractor, device)
    features = extract(images, network).features
    swapped = extract(images[..., ::-1].copy(), network).features
    fid, fid_swapped = (
        fid_of_features(x, reference.mu, reference.sigma) for x in (features, swapped)
    )
    return {
        "too-few-images": too_few_images(source.num_images, protocol.num_images),
        "value-range": value_range(images),
        "channel-order": channel_order(fid, fid_swapped),
        "duplicates": finding_if(
            num_repeated >= DUPLICATES_LIMIT * source.num_images,
            f"{num_repeated:,} of {source.num_images:,} images equal an earlier one",
            f"below {DUPLICATES_LIMIT:.1%}",
        ),
    }


def _read(source: ImageSource) -> tuple[Images, int]:
    """Random images for features, and the number of all images that repeat an earlier one."""
    numbers = np.sort(np.random.default_rng(SEED).permutation(source.num_images)[:NUM_FEATURES])
    subset, digests, start = [], set[bytes](), 0
    for batch in source.batches(1000):
        digests.update(hashlib.sha256(image.tobytes()).digest() for image in batch)
        subset.append(batch[numbers[(numbers >= start) & (numbers < start + len(batch))] - start])
        start += len(batch)
    return np.concatenate(subset), source.num_images - len(digests)


def value_range(images: Images) -> Finding | None:
    """Values of another range made uint8 (N, H, W, 3).

    Floats in [0, 1] or [-1, 1] that are cast have the values 0, 1 and 255 alone. Floats in [0, 1]
    taken for [-1, 1] leave the levels below 127 empty, and floats in [-1, 1] taken for [0, 1] put
    the dark half to 0. Of the values of CIFAR-10 images 0.5 % are 0 or 1, 1 % are 255 and half are
    below 127; the limits leave room for dark or bright data.
    """
    shares = np.bincount(images.ravel(), minlength=256) / images.size
    ends, dark, zero = shares[[0, 1, 255]].sum(), shares[:127].sum(), shares[0]
    measured = f"{zero:.1%} of the values are 0"
    return (
        finding_if(ends > 0.9, f"{ends:.1%} of the values are 0, 1 or 255", "below 90 %")
        or finding_if(dark < 0.001, f"{dark:.2%} of the values are below 127", "above 0.1 %")
        or finding_if(zero > 0.25, measured, "below 25 %", certainty="likely")
    )


def channel_order(fid: float, swapped: float) -> Finding | None:
    """Red and blue swapped: FID falls when they are swapped back."""
    return finding_if(
        fid / swapped - 1 >= FID_LIMIT,
        f"fid falls by {1 - swapped / fid:.1%} with red and blue swapped",
        f"below {FID_LIMIT:.0%}",
        certainty="likely",
        effect=f"fid {fid:.1f}, {swapped:.1f} with red and blue swapped",
    )
