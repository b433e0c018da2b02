"""Where the paper and its official code disagree, and which side this project follows."""

import functools
from typing import Literal

from msgspec.structs import asdict

from cmrepro.paper.claims import AbsoluteClaim, claims
from cmrepro.paper.tables import FOLDER, hyperparameters
from cmrepro.schema import Positive, Struct, read_toml


class Deviation(Struct, frozen=True, kw_only=True):
    """One place where two sides disagree.

    Attributes:
        id: E.g. "ct-imagenet64-learning-rate".
        row: Number of the finding, 1 to 32; None for context entries.
        group: Part of the work, or the kind of source that disagrees.
        item: Subject of the disagreement.
        paper: The paper's side.
        released: The other side: the official code, or the source that `group` names.
        effect: Effect on a model or a score, "" where not known.
        sources: Letters of sources.toml.
        where: Files, commands, issues.
        follow: "both" (recipe variant `paper` takes the paper's side, `released` the other),
            "paper", "released", "own" (neither) or "none" (nothing here depends on it).
        action: What this project does.
        fields: Recipe fields that it touches.
        recipes: Recipes that it touches.
        claims: Ids of the claims whose printed value is the paper's side.
    """

    id: str
    row: Positive | None = None
    group: Literal["table3", "training", "evaluation", "paper", "reports", "later-values"]
    item: str
    paper: str = ""
    released: str
    effect: str = ""
    sources: tuple[str, ...]
    where: str
    follow: Literal["both", "paper", "released", "own", "none"]
    action: str
    fields: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


class _Cells(Struct, frozen=True):
    row: str
    columns: tuple[str, ...]


class _Entry(Deviation, frozen=True, kw_only=True):
    """An entry of deviations.toml: the paper's side is a text, cells of Table 3, or claims."""

    table3: _Cells | None = None


class _File(Struct, frozen=True):
    deviation: tuple[_Entry, ...]


@functools.cache
def deviations() -> tuple[Deviation, ...]:
    """The ledger, in the order of deviations.toml."""
    values = {c.id: str(c.printed) for c in claims() if isinstance(c, AbsoluteClaim)}
    rows = {row.name: row.cells for row in hyperparameters()}
    found = []
    for entry in read_toml(_File, FOLDER / "deviations.toml").deviation:
        fields, cells = asdict(entry), entry.table3
        printed = [rows[cells.row][column] for column in cells.columns] if cells else []
        printed += [values[id] for id in entry.claims]
        fields["paper"] = entry.paper or " / ".join(dict.fromkeys(printed))
        del fields["table3"]
        found.append(Deviation(**fields))
    return tuple(found)
