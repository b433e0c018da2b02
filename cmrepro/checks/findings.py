"""A finding: a cause, what was measured, how likely it is, what it does to the score."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources

from cmrepro.data import ImageSource
from cmrepro.settings import Protocol

FID_LIMIT = 0.02  # by which the distance of a set moves by chance


@dataclass(frozen=True)
class Cause:
    """A cause of causes.toml.

    Attributes:
        number: Of the list in the documentation.
        words: What it is.
        advice: What to do about it.
    """

    number: int
    words: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """A cause that a measurement speaks for.

    Attributes:
        cause: Its key in causes.toml.
        measured: The number measured, in words.
        clean: What clean inputs give.
        likelihood: From 0.5 to 1, see `likelihood`; 1 where two statements contradict each other.
        effect: What it does to the score.
    """

    cause: str
    measured: str
    clean: str
    likelihood: float
    effect: str = "not measured"


@dataclass(frozen=True)
class Settings:
    """What things are held against.

    Attributes:
        protocol: How scores are measured.
        reference: Name or file of reference statistics; the protocol's own by default.
        real: Real images, as generated ones should be.
        device: Where networks run.
    """

    protocol: Protocol
    reference: str | None = None
    real: ImageSource | None = None
    device: str = "cpu"


@dataclass
class Examination:
    """What was found about one path.

    Attributes:
        what: The path.
        checked: Keys of the causes that were looked for; others need more than was given.
        findings: What was found, the most likely first.
        error: Why it could not be examined; then the others are empty.
    """

    what: str = ""
    checked: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    error: str = ""

    def add(self, cause: str, finding: Finding | None) -> None:
        """Note that a cause was looked for, and what was found."""
        self.checked.add(cause)
        if finding is not None:
            self.findings.append(finding)


@functools.cache
def causes() -> dict[str, Cause]:
    """The causes by their keys."""
    text = resources.files(__package__).joinpath("causes.toml").read_text(encoding="utf-8")
    return {key: Cause(**fields) for key, fields in tomllib.loads(text).items()}


def likelihood(value: float, limit: float) -> float:
    """How likely a cause is whose measure is `value` where clean inputs stay below `limit`.

    1 - limit / (2 value): 0 below half the limit, 0.5 at it, 0.75 (called likely) at twice the
    limit, towards 1 far beyond. A rule to sort by, not a probability.
    """
    return max(0.0, 1 - limit / (2 * value)) if value > 0 else 0.0


def beyond(
    cause: str,
    value: float,
    limit: float,
    measured: str,
    clean: str,
    effect: str = "not measured",
    most: float = 1.0,
) -> Finding | None:
    """The finding of a measure that clean inputs keep below a limit, None below it.

    Its likelihood is at most `most`: 0.74 where a cause is never called more than possible.
    """
    if value < limit:
        return None
    return Finding(cause, measured, clean, min(most, likelihood(value, limit)), effect)


def undone(
    cause: str, as_is: float, without: float, how: str, limit: float, clean: str = ""
) -> Finding | None:
    """The finding of a fault whose undoing brings images nearer to the reference.

    Args:
        cause: Key of the fault.
        as_is: Fréchet distance of the images.
        without: Of the same with the suspected fault undone.
        how: It was undone, in words.
        limit: Relative gain that is chance.
        clean: What clean inputs give; a gain below the limit by default.
    """
    gain, effect = as_is / without - 1, moved((as_is, without), how)
    measured = f"fid falls by {1 - without / as_is:.1%} {how}"
    return beyond(cause, gain, limit, measured, clean or f"below {limit:.0%}", effect)


def moved(distances: Iterable[float], how: str) -> str:
    """The effect on a Fréchet distance in words.

    Args:
        distances: Of what was given, and with the suspected fault undone.
        how: What was done for the second.
    """
    as_is, undone = distances
    return f"fid {as_is:.1f}, {undone:.1f} {how}"
