"""Two records side by side: what differs in settings, hashes and scores, and what that means."""

import json
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from cmrepro.records3 import HASHES, RELATIVE_TOLERANCE, RunRecord, differences

QUANTILE = NormalDist().inv_cdf(0.975)  # of intervals of 95 %

# What it means where two runs part.
PARTED = {
    "noise": "they start from other noise: another seed, number of images or of steps, or another "
    "random generator",
    "labels": "the noise is the same, the classes are not: another rule to draw them",
    "images": "what they start from is the same, the images are not: another checkpoint, sampler "
    "or rule of rounding, or other arithmetic (device, threads, libraries)",
    "features": "the images are the same, their features are not: another extractor, or other "
    "arithmetic (device, threads, libraries)",
}
# `comparable` repeats others.
NO_SETTINGS = ("comparable", "hashes", "scores", "uncertainty", "warnings", "durations_s")


@dataclass(frozen=True)
class Comparison:
    """How two records differ.

    Attributes:
        settings: `what`, `first`, `second` of what differs and is no result or duration; lists as
            JSON.
        parted: Where the hashes part first, and what that means.
        scores: `what`, `first`, `second`, `difference` (second minus first) and `interval`, half
            the width of its 95 % interval, None where the spread of a score is not known.
        reasons: Why the scores cannot be compared; empty where they can.
    """

    settings: list[dict[str, Any]]
    parted: str
    scores: list[dict[str, Any]]
    reasons: list[str]


def compare(first: RunRecord, second: RunRecord) -> Comparison:
    """Explain the difference between two records.

    The interval takes the two sample sets as independent, which is too wide for sets of the same
    noise; of the same images it is zero.
    """
    apart = {
        key: pair
        for key, pair in differences(first, second).items()
        if key.partition(".")[0] not in NO_SETTINGS
    }
    return Comparison(
        [{"what": key, "first": _cell(a), "second": _cell(b)} for key, (a, b) in apart.items()],
        _parted(first, second),
        [_score_row(first, second, metric) for metric in first.scores if metric in second.scores],
        _reasons(first, second, list(apart)),
    )


def _parted(first: RunRecord, second: RunRecord) -> str:
    shared = [stage for stage in HASHES if stage in first.hashes and stage in second.hashes]
    for stage in shared:
        if first.hashes[stage] != second.hashes[stage]:
            return f"The runs part at the {stage}: {PARTED[stage]}."
    same = all(
        math.isclose(value, second.scores.get(metric, value), rel_tol=RELATIVE_TOLERANCE)
        for metric, value in first.scores.items()
    )
    if same:
        return (
            f"The runs have the same {', '.join(shared)}; their scores are the same within "
            f"rounding ({RELATIVE_TOLERANCE:g} of each)."
        )
    return (
        f"The runs have the same {', '.join(shared)}; what differs in their scores comes from "
        "metrics and reference."
    )


def _score_row(first: RunRecord, second: RunRecord, metric: str) -> dict[str, Any]:
    a, b = first.scores[metric], second.scores[metric]
    spreads = [_half_width(first, metric), _half_width(second, metric)]
    known = [spread for spread in spreads if spread is not None]
    half_width = math.hypot(*known) if len(known) == 2 else None
    if first.hashes["images"] == second.hashes["images"]:
        half_width = 0.0
    row = {"what": metric, "first": a, "second": b, "difference": b - a}
    return row | {"interval": half_width}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _half_width(record: RunRecord, metric: str) -> float | None:
    """Half the 95 % interval of a score over sets of as many images, where a record has it."""
    if metric == "fid" and "fid_infinity" in record.uncertainty:
        return float(QUANTILE * record.uncertainty["fid_infinity"]["standard_error"])
    interval = record.uncertainty.get("intervals", {}).get(metric)
    return None if interval is None else float(interval[1] - interval[0]) / 2


def _reasons(first: RunRecord, second: RunRecord, apart: list[str]) -> list[str]:
    scale = [key for key in apart if key.startswith("protocol.")]
    scale += [key for key in ("num_images", "reference.sha256") if key in apart]
    reasons = [f"the scores have different scales ({', '.join(scale)})"] if scale else []
    with_model = [record for record in (first, second) if record.checkpoint]
    if len(with_model) == 1:
        reasons.append(f"only {with_model[0].id} says how its model was trained")
    if len(with_model) < 2:
        return reasons
    for key, a in first.comparable.items():
        b = second.comparable[key]
        if a is None or b is None:
            reasons.append(f"{key} is not known of {'both' if a == b else 'one'}")
        elif a != b:
            reasons.append(f"{key} differs: {_text(key, a)} and {_text(key, b)}")
    return reasons


def _text(key: str, value: Any) -> str:
    return str(value["rule"] if key == "selection" else value)
