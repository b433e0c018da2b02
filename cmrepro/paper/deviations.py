"""Where the paper and its official code disagree, and which side this project follows."""

import functools
from typing import Any, Literal

from cmrepro.paper.claims import AbsoluteClaim, claims
from cmrepro.paper.tables import FOLDER, hyperparameters
from cmrepro.schema import Positive, Struct, convert, read_toml


class Deviation(Struct, frozen=True, kw_only=True):
    """One place where two sides disagree."""

    id: str  # e.g. "ct-imagenet64-learning-rate"
    row: Positive | None = None  # number of the finding, 1 to 32; None for context entries
    # Part of the work, or the kind of source that disagrees
    group: Literal["table3", "training", "evaluation", "paper", "reports", "later-values"]
    item: str  # subject of the disagreement
    paper: str  # the paper's side
    released: str  # the other side: the official code, or the source that `group` names
    effect: str = ""  # effect on a model or a score, "" where not known
    sources: tuple[str, ...]  # letters of sources.toml
    where: str  # files, commands, issues
    # "both" (recipe variant `paper` takes the paper's side, `released` the other), "paper",
    # "released", "own" (neither) or "none" (nothing here depends on it)
    follow: Literal["both", "paper", "released", "own", "none"]
    action: str  # what this project does
    fields: tuple[str, ...] = ()  # recipe fields that it touches
    recipes: tuple[str, ...] = ()  # recipes that it touches
    claims: tuple[str, ...] = ()  # ids of the claims whose printed value is the paper's side


@functools.cache
def deviations() -> tuple[Deviation, ...]:
    """The ledger, in the order of deviations.toml, with the paper's cells and printed values."""
    values = {c.id: str(c.printed) for c in claims() if isinstance(c, AbsoluteClaim)}
    rows = {row.name: row.cells for row in hyperparameters()}
    path = FOLDER / "deviations.toml"
    entries = read_toml(dict[str, list[dict[str, Any]]], path)["deviation"]
    for entry in entries:
        cells = entry.pop("table3", {"columns": []})
        printed = [rows[cells["row"]][column] for column in cells["columns"]]
        printed += [values[id] for id in entry.get("claims", [])]
        entry.setdefault("paper", " / ".join(dict.fromkeys(printed)))
    return convert(tuple[Deviation, ...], entries, path.name)
