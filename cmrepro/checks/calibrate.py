"""Published scores of real CIFAR-10 images, repeated on the user's own files."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from cmrepro.data import ImageSource
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import build_reference
from cmrepro.schema import Struct, read_toml, to_builtins
from cmrepro.settings import Metric

Split = Literal["train", "test"]


class Published(Struct, frozen=True, kw_only=True):
    """A published score of calibration.toml."""

    metric: Metric
    images: Split  # images that are scored
    reference: Split | None = None  # images of the statistics; None for IS, which needs none
    published: float
    protocol: str  # ours with the same extractor and resize
    tolerance: float  # largest difference that counts as agreement
    source: str


def published_scores() -> list[Published]:
    """The entries of calibration.toml."""
    path = Path(str(resources.files(__package__) / "calibration.toml"))
    return read_toml(dict[str, list[Published]], path)["scores"]


def calibration_rows(
    published: Sequence[Published], images: Mapping[Split, ImageSource], device: str = "cpu"
) -> list[dict[str, object]]:
    """One row a published score: its value, ours from all images, and their agreement."""
    rows = []
    for entry in published:
        scored, real = images[entry.images], images[entry.reference or entry.images]
        protocol = load_protocol(entry.protocol).replace(
            metrics=(entry.metric,), num_images=scored.num_images, stored_features=None
        )
        reference = build_reference(
            real, protocol, dataset="calibration", split="train", device=device, progress=True
        )
        [scores] = score(scored, [Task(protocol, reference)], device=device, progress=True)
        ours = scores.values[entry.metric]
        difference = ours - entry.published
        verdict = "agrees" if abs(difference) <= entry.tolerance else "differs"
        values = {"ours": ours, "difference": difference, "verdict": verdict}
        rows.append(to_builtins(entry) | values)
    return rows
