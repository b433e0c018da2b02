"""Records brought together: mean and interval over seeds."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cmrepro.records3 import RunRecord
from cmrepro.report.equivalence import half_width

LABELS = {
    "fid": "FD",
    "sfid": "sFD",
    "is": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
DEMO = "demo-"


@dataclass(frozen=True)
class Summary:
    """Mean of one score over seeds.

    Attributes:
        mean: Of the records' values.
        half_width: Half the 95 % Student-t interval of the mean; NaN with one record.
        n: Number of records.
    """

    mean: float
    half_width: float
    n: int

    def __str__(self) -> str:
        digits = 4 if abs(self.mean) < 1 else 2 if abs(self.mean) < 100 else 1
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def summarise(values: list[float]) -> Summary:
    """Mean and Student-t interval of the values of independent seeds."""
    n = len(values)
    if n < 2:
        return Summary(float(np.mean(values)), math.nan, n)
    half = half_width(np.std(values, ddof=1), n)
    return Summary(float(np.mean(values)), float(half), n)


GroupKey = tuple[str, int | None, str, int]


def group(records: list[RunRecord]) -> dict[GroupKey, list[RunRecord]]:
    """Records by (model, nfe, protocol with version, number of images), seeds in order.

    Raises:
        ValueError: Records of one group differ in checkpoint, times, rounding or reference, or
            two have the same seed, so that their mean would mean nothing.
    """
    groups: dict[GroupKey, list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.model, r.nfe or 0, r.seed or 0)):
        protocol = f"{record.protocol['name']} v{record.protocol['version']}"
        groups[record.model, record.nfe, protocol, record.num_images].append(record)
    for members in groups.values():
        for one, other in pairwise(members):
            mine, theirs = _of_group(one), _of_group(other)
            unlike = [f"different {what}" for what in mine if mine[what] != theirs[what]]
            unlike += ["the same seed"] * (one.seed == other.seed)
            if unlike:
                raise ValueError(
                    f"a mean over records {one.id} and {other.id} means nothing: they have "
                    f"{' and '.join(unlike)}; remove what is out of date"
                )
    return dict(groups)


def _of_group(record: RunRecord) -> dict[str, object]:
    """What records have to share for a mean over their seeds."""
    return {
        "checkpoints": record.checkpoint.get("sha256"),
        "times": record.sampler.get("times"),
        "rounding": record.sampler.get("to_uint8"),
        "references": record.reference["sha256"],
    }


def results_rows(records: list[RunRecord]) -> list[dict[str, Any]]:
    """One row a group: model, nfe, protocol, images, seeds, and each score's mean ± interval."""
    return [
        {
            "model": model,
            "nfe": nfe,
            "protocol": protocol,
            "images": num_images,
            "seeds": len(members),
        }
        | {
            LABELS[metric]: str(summarise([r.scores[metric] for r in members]))
            for metric in LABELS
            if metric in members[0].scores
        }
        for (model, nfe, protocol, num_images), members in group(records).items()
    ]


def anchors(record: RunRecord, records: list[RunRecord]) -> list[RunRecord]:
    """Records of images that no network here made, scored as a record was; not itself.

    The best come first, by FD where they have it.
    """
    found = [
        other
        for other in records
        if other.nfe is None and other.id != record.id and _scored(other) == _scored(record)
    ]
    return sorted(found, key=lambda other: (other.scores.get("fid", math.inf), other.id))


def _scored(record: RunRecord) -> tuple[object, ...]:
    """How a record was scored: all that scores of one scale share."""
    protocol = record.protocol
    return protocol["name"], protocol["version"], record.num_images, record.reference["sha256"]


def recipe_name(record: RunRecord) -> str:
    """Name of the recipe that a model was trained by; converted checkpoints have it as origin."""
    trained_here = record.checkpoint.get("recipe", {}).get("name")
    return str(trained_here or record.checkpoint.get("origin", {}).get("recipe") or "")


def recipe_of(record: RunRecord) -> str:
    """The recipe of Table 3 that a model stands for: a demo model for the one it imitates."""
    return recipe_name(record).removeprefix(DEMO)


def is_demo(record: RunRecord) -> bool:
    """Whether the model is one of the demo's."""
    return recipe_name(record).startswith(DEMO)
