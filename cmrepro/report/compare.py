"""Two records side by side: what differs in settings, hashes and scores, and what that means."""

import json
import math
from statistics import NormalDist
from typing import Any

from cmrepro.records import RELATIVE_TOLERANCE, Hashes, RunRecord, differences
from cmrepro.report.comparability import (
    DATA_AND_SIZE,
    SAMPLING,
    SCORING,
    TRAINING,
    compare_facts,
    facts,
)
from cmrepro.schema import Struct
from cmrepro.settings import Metric

QUANTILE = NormalDist().inv_cdf(0.975)  # of intervals of 95 %
PARTED = {
    "noise": "another seed, num_images, nfe or random generator",
    "labels": "another rule to draw classes",
    "images": "another checkpoint, sampler or rounding, or other device, threads or libraries",
    "features": "another extractor, or other device, threads or libraries",
}
NO_SETTINGS = ("hashes", "scores", "uncertainty", "warnings", "durations_s")


class Comparison(Struct, frozen=True):
    """Differences of two records.

    Attributes:
        settings: `what`, `first`, `second` of every setting that differs; lists as JSON.
        parted: The stage at which the hashes part, and what that means.
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
    noise; it is zero for the same images.
    """
    settings = [
        {"what": key, "first": _cell(a), "second": _cell(b)}
        for key, (a, b) in differences(first, second).items()
        if key.partition(".")[0] not in NO_SETTINGS
    ]
    rows = [_score_row(first, second, m) for m in first.scores if m in second.scores]
    return Comparison(settings, _parted(first, second), rows, _reasons(first, second))


def _reasons(first: RunRecord, second: RunRecord) -> list[str]:
    """Fields in which the scores are not comparable; the models and their NFE may differ."""
    a, b = facts(first), facts(second)
    reasons, fields = [], list(SCORING)
    if first.reference.sha256 != second.reference.sha256 and a["reference"] == b["reference"]:
        reasons.append("reference statistics with other checksums")
    with_model = [record for record in (first, second) if record.checkpoint]
    if len(with_model) == 1:
        reasons.append(f"only {with_model[0].id} states how its model was trained")
    if len(with_model) == 2:
        fields += [*DATA_AND_SIZE, *TRAINING, *SAMPLING[first.nfe != second.nfe :]]
    agreement = compare_facts(a, b, fields, ("in the first", "in the second"))
    unknown = [f"not known: {text}" for text in agreement.unknown.values()]
    return [*agreement.different.values(), *unknown, *reasons]


def _parted(first: RunRecord, second: RunRecord) -> str:
    pairs = {
        stage: (getattr(first.hashes, stage), getattr(second.hashes, stage))
        for stage in Hashes.__struct_fields__
    }
    shared = [stage for stage, pair in pairs.items() if None not in pair]
    for stage in shared:
        if len(set(pairs[stage])) > 1:
            return f"The runs part at the {stage}; causes: {PARTED[stage]}."
    same = all(
        math.isclose(value, second.scores.get(metric, value), rel_tol=RELATIVE_TOLERANCE)
        for metric, value in first.scores.items()
    )
    scores = f"their scores are the same within rounding ({RELATIVE_TOLERANCE:g} of each)"
    if not same:
        scores = "the difference of their scores comes from metrics and reference"
    return f"The runs have the same {', '.join(shared)}; {scores}."


def _score_row(first: RunRecord, second: RunRecord, metric: Metric) -> dict[str, Any]:
    a, b = first.scores[metric], second.scores[metric]
    spreads = [_half_width(record, metric) for record in (first, second)]
    interval = None if None in spreads else math.hypot(*(s for s in spreads if s is not None))
    if first.hashes.images == second.hashes.images:
        interval = 0.0
    return {"what": metric, "first": a, "second": b, "difference": b - a, "interval": interval}


def _half_width(record: RunRecord, metric: Metric) -> float | None:
    """Half the 95 % interval of a score over sets of as many images, where a record has it."""
    if not (uncertainty := record.uncertainty):
        return None
    if metric == "fid" and uncertainty.fid_infinity:
        return QUANTILE * uncertainty.fid_infinity.standard_error
    interval = uncertainty.intervals.get(metric)
    return None if interval is None else (interval[1] - interval[0]) / 2


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
