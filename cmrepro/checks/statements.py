"""Faults that statements show: of a record, of what lies beside a sample set, of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from cmrepro.checks.findings import Finding, likelihood
from cmrepro.settings import Extractor

# Names of the official PyTorch code's files: ema_0.9999_000000.pt holds the averaged weights.
ONLINE_NAMES = re.compile(r"(target_)?model\d+\.pt")


def direction(sampler: Mapping[str, Any], sigma_max: float | None) -> Finding | None:
    """Whether the times of a sampler rise, or do not begin at sigma_max.

    Args:
        sampler: Its settings, as records have them; empty for foreign images.
        sigma_max: Of the checkpoint, where known.
    """
    times = sampler.get("times") or []
    measured = f"times {', '.join(f'{t:g}' for t in times)}"
    if any(s >= t for t, s in pairwise(times)):
        return Finding("time-direction", measured, "falling", 1.0)
    if times and sigma_max is not None and times[0] < sigma_max:
        clean = f"the first is sigma_max, {sigma_max:g}"
        return Finding("time-direction", measured, clean, likelihood(sigma_max, times[0]))
    return None


def rounding_stated(sampler: Mapping[str, Any], asked: str) -> Finding | None:
    """Whether a sampler's rule to make images uint8 is stated and not what a protocol asks."""
    rule = sampler.get("to_uint8")
    if rule is None or asked in (rule, "as given"):
        return None
    return Finding("rounding", f"sampled with rule '{rule}'", f"'{asked}'", 1.0)


def split(reference: Mapping[str, Any], trained_on: str | None) -> Finding | None:
    """Whether a reference is of another split of the data set that the model was trained on.

    Args:
        reference: As a record has it.
        trained_on: Data set with its split, e.g. "cifar10-train", where known.
    """
    dataset, _, part = (trained_on or "").rpartition("-")
    if dataset != reference.get("dataset") or part == reference.get("split"):
        return None
    measured = f"reference of split '{reference.get('split')}'"
    return Finding("other-split", measured, f"'{part}', which the model was trained on", 1.0)


def extractor(
    protocol: Mapping[str, Any], reference: Mapping[str, Any], own: Extractor
) -> Finding | None:
    """Whether a record's features are of another network or weights than its protocol's.

    Args:
        protocol: As the record has it.
        reference: Likewise.
        own: Extractor of the protocol of that name.
    """
    used = protocol.get("extractor", {})
    stated = {
        "extractor": (used.get("name"), own.name),
        "weights": (used.get("weights", {}).get("checksum"), own.weights.checksum),
        "resize": (used.get("resize"), own.resize),
        "reference's extractor": (reference.get("extractor"), own.name),
    }
    for what, (got, asked) in stated.items():
        if got not in (None, "unknown", asked):
            return Finding("extractor", f"{what} {got}", str(asked), 1.0)
    return None


def online(origin: Mapping[str, Any]) -> Finding | None:
    """Whether a checkpoint says, or the name of the file it was made from, that it is no EMA."""
    stated, source = origin.get("weights"), str(origin.get("source", ""))
    if stated in ("online", "target"):
        return Finding("online-weights", f"the file says weights '{stated}'", "'ema'", 1.0)
    if ONLINE_NAMES.fullmatch(source):
        return Finding("online-weights", f"made from {source}", "made from ema_*.pt", 1.0)
    return None
