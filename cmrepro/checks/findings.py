"""Causes of a wrong score, and the evidence for them."""

import functools
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from cmrepro.schema import Struct, read_toml


class Cause(Struct, frozen=True):
    """A cause of causes.toml."""

    description: str
    advice: str


class Finding(Struct, frozen=True, kw_only=True):
    """Evidence for a cause."""

    # "likely" where clean inputs may, rarely, give the same
    certainty: Literal["certain", "likely"] = "certain"
    measured: str  # measurement or statement
    expected: str  # its value for clean inputs
    effect: str = "not measured"  # on the score


Findings = dict[str, Finding | None]  # for each cause that was checked


@functools.cache
def causes() -> dict[str, Cause]:
    """Causes by key."""
    return read_toml(dict[str, Cause], Path(str(resources.files(__package__) / "causes.toml")))


def finding_if(fault: bool, measured: str, expected: str, **others: Any) -> Finding | None:
    """A finding where there is a fault."""
    return Finding(measured=measured, expected=expected, **others) if fault else None


def too_few_images(num_images: int, required: int) -> Finding | None:
    """Fewer images than a protocol requires."""
    return finding_if(num_images < required, f"{num_images:,} images", f"{required:,} or more")
