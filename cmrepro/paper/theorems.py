"""The paper's theorems and other statements that can be checked in full, from theorems.toml."""

import functools
from math import inf

from cmrepro.paper.tables import FOLDER
from cmrepro.schema import Struct, read_toml


class Statement(Struct, frozen=True, kw_only=True):
    """A statement and the values of its quantity that confirm it."""

    id: str  # as in `records.TheoremCheck`
    source: str  # place in the paper
    statement: str  # the statement in words
    quantity: str  # what is measured
    predicted: str  # its value by the paper
    at_least: float = -inf  # bounds of its 95 % interval
    at_most: float = inf


@functools.cache
def statements() -> tuple[Statement, ...]:
    """Statements in the order of the paper."""
    file = read_toml(dict[str, tuple[Statement, ...]], FOLDER / "theorems.toml")
    return file["statements"]
