"""Two records side by side: what differs in settings, hashes and scores, and what that means."""

import math
from typing import Any

from cmrepro.records import RELATIVE_TOLERANCE, RunRecord, differences
from cmrepro.report.comparability import Agreement, pair_agreement
from cmrepro.schema import Struct
from cmrepro.settings import Metric

DIVERGENCE_CAUSES = {  # causes of a difference by stage, in the order of the stages
    "noise": "another seed, num_images, nfe or random generator",
    "labels": "another rule to draw classes",
    "images": "another checkpoint, sampler or rounding, or other device, threads or libraries",
    "features": "another extractor, or other device, threads or libraries",
}
NO_SETTINGS = ("hashes", "scores", "uncertainty", "warnings", "durations_s")


class Comparison(Struct, frozen=True):
    """Differences of two records."""

    settings: list[dict[str, Any]]  # `what`, `first`, `second`
    divergence: str  # the first stage at which the hashes differ, and what that means
    # `what`, `first`, `second`, `difference` (second - first) and `interval`, half the width of
    # its 95 % interval, None where the spread of a score is not known
    scores: list[dict[str, Any]]
    agreement: Agreement  # what keeps the scores from being compared, as for a verdict


def compare(first: RunRecord, second: RunRecord) -> Comparison:
    """Explain the difference between two records.

    The interval takes the two sample sets as independent, which is too wide for sets of the same
    noise; it is zero for the same images.
    """
    settings = [
        {"what": key, "first": a, "second": b}
        for key, (a, b) in differences(first, second).items()
        if key.partition(".")[0] not in NO_SETTINGS
    ]
    scores = []
    for metric in (m for m in first.scores if m in second.scores):
        x, y = first.scores[metric], second.scores[metric]
        half = math.hypot(half_interval(first, metric), half_interval(second, metric))
        half = 0.0 if first.hashes.images == second.hashes.images else half
        row = {"what": metric, "first": x, "second": y, "difference": y - x}
        scores.append(row | {"interval": None if math.isnan(half) else half})
    return Comparison(settings, _divergence(first, second), scores, pair_agreement(first, second))


def half_interval(record: RunRecord, metric: Metric) -> float:
    """Half the 95 % interval of a score over sets of as many images, NaN where not known."""
    intervals = record.uncertainty.intervals if record.uncertainty else {}
    low, high = intervals.get(metric, (math.nan, math.nan))
    return (high - low) / 2


def _divergence(first: RunRecord, second: RunRecord) -> str:
    """The first stage whose hashes differ, or where a difference of scores comes from."""
    shared = []
    for stage in DIVERGENCE_CAUSES:
        pair = {getattr(first.hashes, stage), getattr(second.hashes, stage)}
        if None not in pair and len(pair) > 1:
            return f"The runs diverge at the {stage}; causes: {DIVERGENCE_CAUSES[stage]}."
        shared += [] if None in pair else [stage]
    scores = f"their scores are the same within rounding ({RELATIVE_TOLERANCE:g} of each)"
    for metric, value in first.scores.items():
        if not math.isclose(value, second.scores.get(metric, value), rel_tol=RELATIVE_TOLERANCE):
            scores = "the difference of their scores comes from metrics and reference"
    return f"The runs have the same {', '.join(shared)}; {scores}."
