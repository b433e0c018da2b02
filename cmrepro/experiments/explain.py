"""Why two protocols score the same images differently, one change at a time.

From the first protocol to the second in this order: rounding of pixels, the reference rebuilt from
the real images at hand, resize, extractor, the second's own reference, number of images, settings
of the metrics. Each row differs from the one above in that alone, so that the changes add up to
the whole difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrepro.data import ImageSource
from cmrepro.metrics.protocols import ExtractorSettings, Protocol
from cmrepro.metrics.references import ReferenceStatistics, build_reference, load_reference
from cmrepro.metrics.score import Task, score

METRIC_SETTINGS = tuple(
    field.name
    for field in fields(Protocol)
    if field.name.startswith(("is_", "kid_", "neighborhood", "reference_features"))
    and field.name != "is_extractor"
)


class Step(NamedTuple):
    """One row of the attribution.

    Attributes:
        change: What differs from the row above.
        detail: Its value before and after.
        scores: By metric, after the change.
    """

    change: str
    detail: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Requantized:
    """Images as they would be if they had been made uint8 by the other rule, emulated.

    Which of two neighbouring levels a pixel had been given is not known from the pixel; with a
    fraction of equal probability everywhere, half of all pixels lose a level by truncation and
    win one by rounding. 0 and 255, to which most values outside the range were clipped, stay.

    Attributes:
        images: As they are.
        to_uint8: "truncate" or "round", the rule to emulate.
    """

    images: ImageSource
    to_uint8: str

    @property
    def num_images(self) -> int:
        """N."""
        return self.images.num_images

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches; image i's coins depend on i alone."""
        for batch in self.images.batches(batch_size, start, stop):
            coins = np.stack(
                [
                    np.random.Generator(np.random.Philox(key=start + i)).integers(
                        0, 2, batch.shape[1:], np.uint8
                    )
                    for i in range(len(batch))
                ]
            )
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
) -> list[Step]:
    """Attribute the difference between two protocols on one sample set.

    Args:
        images: Generated images, made uint8 by the first protocol's rule.
        first: Scored first.
        second: Scored last.
        real: Images that references are built from where the extractors differ.
        device: Where extractors run.

    Returns:
        The first protocol's scores, one row a change, the last one being the second protocol's.

    Raises:
        ValueError: The protocols share no metric, or their extractors differ and no real images
            are given; see `score` too.
    """
    shared = tuple(metric for metric in first.metrics if metric in second.metrics)
    if not shared:
        raise ValueError(
            f"protocols {first.name} and {second.name} share no metric ({', '.join(first.metrics)}"
            f" and {', '.join(second.metrics)}); nothing to explain"
        )
    # References of the steps in between may be built from any real images.
    first, second = (replace(p, metrics=shared, dataset=None) for p in (first, second))
    rebuilt = first.extractor != second.extractor
    if rebuilt and real is None:
        raise ValueError(
            f"protocols {first.name} and {second.name} have different extractors; the references "
            "in between are built from real images: give them with --real"
        )
    # The second with as many images and the settings of the metrics as the first.
    settings = {name: getattr(first, name) for name in METRIC_SETTINGS}
    alike = replace(second, num_images=first.num_images, **settings)

    def built(protocol: Protocol) -> ReferenceStatistics:
        assert real is not None
        return build_reference(real, protocol, dataset=real.name, split="as given", device=device)

    own, other = load_reference(first), load_reference(second)
    stages = [("", first.name, Task(first, own))]
    rounds = {first.to_uint8, second.to_uint8} == {"round", "truncate"}
    if rounds:
        detail = f"{first.to_uint8} -> {second.to_uint8}"
        stages.append(("rounding (emulated)", detail, Task(first, own)))
    if rebuilt:
        assert real is not None
        detail = f"{own.name} -> of {real.name}"
        stages.append(("reference", detail, Task(first, built(first))))
        between = resized(first.extractor, second.extractor)
        if between != first.extractor:
            protocol = replace(first, extractor=between)
            detail = f"{first.extractor.resize} -> {between.resize}"
            stages.append(("resize", detail, Task(protocol, built(protocol))))
        detail = f"{first.extractor.name} -> {second.extractor.name}"
        stages.append(("extractor", detail, Task(alike, built(alike))))
        stages.append(("reference", f"of {real.name} -> {other.name}", Task(alike, other)))
    elif first.reference != second.reference:
        stages.append(("reference", f"{own.name} -> {other.name}", Task(alike, other)))
    if first.num_images != second.num_images:
        protocol = replace(alike, num_images=second.num_images)
        detail = f"{first.num_images:,} -> {second.num_images:,}"
        stages.append(("number of images", detail, Task(protocol, other)))
    if changed := [name for name in METRIC_SETTINGS if settings[name] != getattr(second, name)]:
        stages.append(("metric settings", ", ".join(changed), Task(second, other)))

    tasks = [task for _, _, task in stages]
    scores = score(images, tasks[:1], device=device)
    if len(tasks) > 1:
        source = Requantized(images, second.to_uint8) if rounds else images
        scores += score(source, tasks[1:], device=device)
    return [
        Step(change, detail, result.values)
        for (change, detail, _), result in zip(stages, scores, strict=True)
    ]


def resized(extractor: ExtractorSettings, other: ExtractorSettings) -> ExtractorSettings:
    """An extractor with the other's resize, where both networks take images of one size."""
    if extractor.image_size != other.image_size or extractor.resize == other.resize:
        return extractor
    return replace(extractor, resize=other.resize)


def explanation_rows(steps: list[Step]) -> list[dict[str, object]]:
    """One row a step: the change, and each metric's value with its difference to the row above."""
    rows = []
    for above, step in zip([steps[0], *steps], steps, strict=False):
        row: dict[str, object] = {"change": step.change or "as it is", "detail": step.detail}
        for metric, value in step.scores.items():
            row |= {metric: value, f"{metric} moved": value - above.scores[metric]}
        rows.append(row)
    return rows
