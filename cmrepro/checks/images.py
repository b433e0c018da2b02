"""A sample set examined: its images read once, features of some of them extracted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro import sampling
from cmrepro.checkpoints.load import CheckpointModel, find_checkpoint, load_model
from cmrepro.checks import pixels, sets
from cmrepro.checks.findings import (
    FID_LIMIT,
    Examination,
    Finding,
    Settings,
    likelihood,
    moved,
    undone,
)
from cmrepro.checks.pixels import Images
from cmrepro.checks.statements import direction, rounding_stated
from cmrepro.checks.statistics import compared_reference, fid
from cmrepro.data import ImageSource
from cmrepro.experiments.run import Origin
from cmrepro.files import sha256
from cmrepro.metrics.extractors import load_extractor
from cmrepro.metrics.features import extract
from cmrepro.metrics.references import ReferenceStatistics
from cmrepro.sampling import SamplerSettings, sample

LOOKED_AT = 500  # images whose features are taken: a fault moves FID whatever their number
REAL_IMAGES = 5000
READ_AT_ONCE = 1000
SEED = 0

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of a set of images.

    Attributes:
        images: Random ones of it, in order, uint8 (n, H, W, 3).
        numbers: Which these are, (n,).
        again: Which of all images are bytewise the same as an earlier one, (N,).
        labels: Classes of all (N,), or None.
        features: Of `images`, float32 (n, D).
    """

    images: Images
    numbers: Numbers
    again: NDArray[np.bool_]
    labels: Numbers | None
    features: NDArray[np.float32]


def see(source: ImageSource, count: int, settings: Settings) -> Seen:
    """Read a set once, and take the features of at most `count` of its images."""
    order = np.random.default_rng(SEED).permutation(source.num_images)
    numbers = np.sort(order[:count])
    chosen: list[Images] = []
    hashes: set[bytes] = set()
    again: list[bool] = []
    for start, batch in enumerate(source.batches(READ_AT_ONCE)):
        again += sets.repeated(batch, hashes)
        own = numbers - start * READ_AT_ONCE
        chosen.append(batch[own[(own >= 0) & (own < len(batch))]])
    images = np.concatenate(chosen)
    features = features_of(images, settings)
    return Seen(images, numbers, np.array(again), source.labels, features)


def features_of(images: Images, settings: Settings) -> NDArray[np.float32]:
    """Features (N, D) by the protocol's extractor."""
    extractor = load_extractor(settings.protocol.extractor, settings.device)
    return extract(images, extractor).features


def examine_images(source: ImageSource, origin: Origin, settings: Settings) -> Examination:
    """What is wrong with a sample set.

    Args:
        source: The images.
        origin: Where they come from, where that lies beside them.
        settings: What they are held against.

    Raises:
        ValueError: The images or the reference cannot be used.
    """
    examination = Examination()
    reference = compared_reference(settings, examination)
    if reference is None:
        return examination
    seen = see(source, LOOKED_AT, settings)
    real = see(settings.real, REAL_IMAGES, settings) if settings.real else None
    finding = too_few_images(source.num_images, settings.protocol.num_images, reference)
    examination.add("too-few-images", finding)
    _add_pixels(examination, seen, real, reference, settings)
    _add_repetitions(examination, seen, real, reference)
    _add_classes(examination, seen, real, reference)
    _add_origin(examination, source, origin, reference, settings)
    return examination


def too_few_images(
    num_images: int, asked: int, reference: ReferenceStatistics | None
) -> Finding | None:
    """Whether there are fewer images than a protocol asks for.

    Args:
        num_images: There are.
        asked: By the protocol.
        reference: Shows the effect where it holds the features of as many real images.
    """
    if num_images >= asked:
        return None
    value = likelihood(asked / num_images, 1)
    finding = Finding("too-few-images", f"{num_images:,} images", f"{asked:,} or more", value)
    stored = reference.features if reference else None
    if reference is None or stored is None or not 2 <= num_images <= len(stored):
        return finding
    bias = fid(stored[:num_images], reference)
    return replace(finding, effect=f"fid {bias:.1f} for as many real images")


def _add_pixels(
    examination: Examination,
    seen: Seen,
    real: Seen | None,
    reference: ReferenceStatistics,
    settings: Settings,
) -> None:
    swapped = features_of(seen.images[..., ::-1].copy(), settings)
    distances = fid(seen.features, reference), fid(swapped, reference)
    # For real images the second is 4 to 13 % larger (200 and 500 of CIFAR-10); of a weak
    # generator, whose images are far off either way, it differs by less than 1 %.
    finding = undone("channel-order", *distances, "with red and blue exchanged", FID_LIMIT)
    examination.add("channel-order", finding)
    examination.add("value-range", pixels.value_range(seen.images))
    examination.add("resize", pixels.resize(seen.images, real.images if real else None))
    if real is None:  # then nothing tells whether the real images are without JPEG
        return
    trace = pixels.jpeg_trace(seen.images)
    finding = pixels.jpeg(trace, real.images)
    if finding is not None:
        before = real.images[:LOOKED_AT]
        after = features_of(pixels.compressed(before, trace.quality, trace.subsampling), settings)
        distances = fid(after, reference), fid(real.features[:LOOKED_AT], reference)
        finding = replace(finding, effect="of real images: " + moved(distances, "without it"))
    examination.add("jpeg", finding)


def _add_repetitions(
    examination: Examination, seen: Seen, real: Seen | None, reference: ReferenceStatistics
) -> None:
    def with_effect(finding: Finding | None, bad: NDArray[np.bool_]) -> Finding | None:
        """The finding with the effect of leaving out some of the images looked at."""
        kept = np.flatnonzero(~bad)
        if finding is None or not 2 <= len(kept) < len(bad):
            return finding
        others = np.random.default_rng(SEED).permutation(len(bad))[: len(kept)]
        distances = (fid(seen.features[which], reference) for which in (others, kept))
        return replace(finding, effect=moved(distances, f"with {len(kept)} others"))

    finding = sets.duplicates(seen.again)
    examination.add("duplicates", with_effect(finding, seen.again[seen.numbers]))
    real_features = real.features if real else reference.features
    if real_features is not None:
        is_copy = sets.copied(seen.features, real_features)
        finding = sets.copies(is_copy, len(real_features))
        examination.add("copies", with_effect(finding, is_copy))


def _add_classes(
    examination: Examination, seen: Seen, real: Seen | None, reference: ReferenceStatistics
) -> None:
    if seen.labels is not None:
        finding = sets.class_counts(seen.labels)
        if finding is not None:
            as_is, even = sets.redrawn(seen.labels[seen.numbers], SEED)
            distances = (fid(seen.features[which], reference) for which in (as_is, even))
            finding = replace(finding, effect=moved(distances, "with classes drawn evenly"))
        examination.add("classes", finding)
    elif real is not None and real.labels is not None:
        classes = real.labels[real.numbers]
        predicted = classes[sets.nearest(seen.features, real.features)[1]]
        some = real.features[:LOOKED_AT]
        expected = classes[sets.nearest(some, real.features, skip_same=True)[1]]
        examination.add("classes", sets.predicted_classes(predicted, expected))


def _add_origin(
    examination: Examination,
    source: ImageSource,
    origin: Origin,
    reference: ReferenceStatistics,
    settings: Settings,
) -> None:
    """Hold the images against what their origin says, and sample the first ones again."""
    if not origin.sampler:
        return
    finding = direction(origin.sampler, origin.checkpoint.get("sigma_max"))
    examination.add("time-direction", finding)
    asked = settings.protocol.to_uint8
    model = own_model(origin.model, origin.checkpoint, settings.device)
    if model is None or finding is not None or asked == "as given" or origin.seed is None:
        examination.add("rounding", rounding_stated(origin.sampler, asked))
        return
    count = min(sampling.BATCH_SIZE, source.num_images)
    stored = next(source.batches(count))
    again = {
        rule: resample(model, {**origin.sampler, "to_uint8": rule}, count, origin.seed)
        for rule in sampling.TO_UINT8
    }
    finding = pixels.rounding(stored, again, asked)
    if finding is not None:
        own = (features_of(images, settings) for images in (stored, again[asked]))
        distances = (fid(features, reference) for features in own)
        how = f"by rule '{asked}', {count} images"
        finding = replace(finding, effect=moved(distances, how))
    examination.add("rounding", finding)


def own_model(name: str, checkpoint: Mapping[str, Any], device: str) -> CheckpointModel | None:
    """The checkpoint that an origin or record names, if the very file is here."""
    try:
        path = find_checkpoint(name)
    except ValueError:
        return None
    return load_model(path, device) if sha256(path) == checkpoint.get("sha256") else None


def resample(model: CheckpointModel, sampler: Mapping[str, Any], count: int, seed: int) -> Images:
    """The first images of a seed again, by a sampler as records have it."""
    names = {field.name for field in fields(SamplerSettings)}
    settings = SamplerSettings(**{key: sampler[key] for key in names & sampler.keys()})
    return sample(model, settings, count, seed, model.image_size).stages[-1]
