"""A user's own CIFAR-10 files scored as in published checks of real images against real ones."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from cmrepro.metrics.features import ImageBatches
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import build_reference
from cmrepro.metrics.score import Task, num_scored, score


@dataclass(frozen=True)
class Published:
    """A published score of calibration.toml.

    Attributes:
        metric: "fid" or "is".
        images: "train" or "test": which are scored.
        value: Published.
        protocol: Name of ours with the same extractor and resize.
        tolerance: Largest difference that counts as agreement.
        source: Who published it.
        reference: Which images the statistics are of; None for IS, which needs none.
    """

    metric: str
    images: str
    value: float
    protocol: str
    tolerance: float
    source: str
    reference: str | None = None


@functools.cache
def published_scores() -> list[Published]:
    """The entries of calibration.toml."""
    text = resources.files(__package__).joinpath("calibration.toml").read_text(encoding="utf-8")
    return [Published(**entry) for entry in tomllib.loads(text)["published"]]


def calibration_rows(
    published: Sequence[Published], images: Mapping[str, ImageBatches], device: str = "cpu"
) -> list[dict[str, object]]:
    """One row a published score: it, ours from all images of the same sets, and the verdict.

    Args:
        published: From `published_scores`.
        images: Of "train" and "test".
        device: Where extractors run.

    Raises:
        ValueError: Weights of an extractor cannot be had, or images cannot be scored.
    """
    for entry in published:  # before weights are downloaded
        count = images[entry.images].num_images
        num_scored(count, load_protocol(entry.protocol), count)
    return [_row(entry, images, device) for entry in published]


def _row(entry: Published, images: Mapping[str, ImageBatches], device: str) -> dict[str, object]:
    scored, real = images[entry.images], images[entry.reference or entry.images]
    protocol = load_protocol(entry.protocol).replace(
        metrics=(entry.metric,),
        num_images=scored.num_images,
        stored_features=None,
        manifold=None,
    )
    reference = build_reference(
        real, protocol, dataset="calibration", split="as given", device=device, progress=True
    )
    [scores] = score(scored, [Task(protocol, reference)], device=device, progress=True)
    ours = scores.values[entry.metric]
    return {
        "score": entry.metric,
        "of": entry.images,
        "against": entry.reference,
        "protocol": entry.protocol,
        "published": entry.value,
        "ours": ours,
        "difference": ours - entry.value,
        "tolerance": entry.tolerance,
        "verdict": "agrees" if abs(ours - entry.value) <= entry.tolerance else "differs",
        "source": entry.source,
    }
