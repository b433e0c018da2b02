"""Attribution of the difference between two protocols' scores, one change at a time.

The changes come in this order: rounding of pixels, the reference built again from real images,
resize, extractor, the second protocol's reference, number of images, settings of the metrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.data import ImageSource
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.metrics.references import build_reference, load_reference
from cmrepro.settings import Protocol

METRIC_SETTINGS = ("stored_features", "inception_score", "kernel", "manifold")


@dataclass(frozen=True)
class Requantized:
    """Images as if the rule `to_uint8` had made them, emulated.

    If the lost fractions are uniform, half of all pixels lose a level by truncation and win one by
    rounding. 0 and 255, to which most values outside the range were clipped, stay.
    """

    images: ImageSource
    to_uint8: str

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.images.num_images

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches; the coins of image i depend on i alone."""
        for batch in self.images.batches(batch_size, start, stop):
            streams = [np.random.Philox(key=start + i) for i in range(len(batch))]
            rngs = map(np.random.Generator, streams)
            coins = np.stack([rng.integers(0, 2, batch.shape[1:], np.uint8) for rng in rngs])
            coins *= (batch > 0) & (batch < 255)
            yield batch - coins if self.to_uint8 == "truncate" else batch + coins
            start += len(batch)


def explain(
    images: ImageSource,
    first: Protocol,
    second: Protocol,
    *,
    real: ImageSource | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Rows of a change, its values, and every metric's score with its difference to the row above.

    `images` were made uint8 by the first protocol's rule. References are built from `real` images
    where the extractors differ.
    """
    shared = tuple(metric for metric in first.metrics if metric in second.metrics)
    if not shared:
        raise ValueError(f"protocols {first.name} and {second.name} share no metric")
    # References of the steps in between may be built from any real images.
    first, second = (p.replace(metrics=shared, dataset=None) for p in (first, second))
    if first.extractor != second.extractor and real is None:
        found = f"protocols {first.name} and {second.name} have different extractors"
        needed = "references in between are built from real images: give them with --real"
        raise ValueError(f"{found}; {needed}")

    def built(protocol: Protocol) -> ReferenceStatistics:
        assert real is not None
        return build_reference(real, protocol, dataset=real.name, split="as given", device=device)

    reference, last = load_reference(first), load_reference(second)
    settings = {name: getattr(first, name) for name in METRIC_SETTINGS}
    if first.inception_score and second.inception_score:  # but its own extractor of logits
        logits = second.inception_score.extractor
        settings["inception_score"] = first.inception_score.replace(extractor=logits)
    alike = second.replace(num_images=first.num_images, **settings)
    changes, tasks = [("as it is", first.name)], [Task(first, reference)]

    def add(change: str, detail: str, protocol: Protocol, statistics: ReferenceStatistics) -> None:
        changes.append((change, detail))
        tasks.append(Task(protocol, statistics))

    rounds = {first.to_uint8, second.to_uint8} == {"round", "truncate"}
    if rounds:
        detail = f"{first.to_uint8} -> {second.to_uint8}"
        add("rounding (emulated)", detail, first, reference)
    source, a, b = reference.name, first.extractor, second.extractor
    if a != b and real is not None:
        source = f"of {real.name}"
        add("reference", f"{reference.name} -> {source}", first, built(first))
        if a.image_size == b.image_size and a.resize != b.resize:
            resized = first.replace(extractor=a.replace(resize=b.resize))
            add("resize", f"{a.resize} -> {b.resize}", resized, built(resized))
        add("extractor", f"{a.name} -> {b.name}", alike, built(alike))
    if a != b or first.reference != second.reference:
        add("reference", f"{source} -> {last.name}", alike, last)
    if first.num_images != second.num_images:
        alike = alike.replace(num_images=second.num_images)
        add("number of images", f"{first.num_images:,} -> {second.num_images:,}", alike, last)
    if changed := [k for k in METRIC_SETTINGS if getattr(alike, k) != getattr(second, k)]:
        add("metric settings", ", ".join(changed), second, last)

    scores = score(images, tasks[:1], device=device, progress=True)
    if tasks[1:]:
        others = Requantized(images, second.to_uint8) if rounds else images
        scores += score(others, tasks[1:], device=device, progress=True)
    rows: list[dict[str, Any]] = []
    above = scores[0].values
    for (change, detail), result in zip(changes, scores, strict=True):
        rows.append({"change": change, "detail": detail})
        for metric, value in result.values.items():
            rows[-1] |= {metric: value, f"{metric} moved": value - above[metric]}
        above = result.values
    return rows
