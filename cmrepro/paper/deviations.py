"""Where the paper and its official code disagree, and which side this project follows."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrepro.paper.claims import claims
from cmrepro.paper.reading import (
    FOLDER,
    check_entry,
    defect,
    distinct,
    known,
    read_toml,
    sources,
)
from cmrepro.paper.statements import AbsoluteClaim
from cmrepro.paper.tables import hyperparameters

FILE = "deviations.toml"
GROUPS = ("table3", "training", "evaluation", "paper", "reports", "later-values")
FOLLOW = ("both", "paper", "released", "own", "none")


@dataclass(frozen=True)
class Deviation:
    """One place where two sides disagree.

    Attributes:
        id: E.g. "ct-imagenet64-learning-rate".
        row: Number of the finding, 1 to 32; None for context entries.
        group: "table3", "training", "evaluation", "paper", "reports" or "later-values".
        item: What it is about.
        paper: The paper's side.
        released: The other side: the official code, or what `group` names.
        effect: What it does, "" where not known.
        sources: Source letters.
        where: Files, commands, issues.
        follow: "both" (recipe variant `paper` takes the paper's side, `released` the other),
            "paper", "released", "own" (neither) or "none" (nothing here depends on it).
        action: What this project does.
        fields: Recipe fields that it touches.
        recipes: Recipes that it touches.
        claims: Ids of the claims whose printed value is the paper's side.
    """

    id: str
    row: int | None
    group: str
    item: str
    paper: str
    released: str
    effect: str
    sources: tuple[str, ...]
    where: str
    follow: str
    action: str
    fields: tuple[str, ...]
    recipes: tuple[str, ...]
    claims: tuple[str, ...]


def _paper_side(row: str, entry: dict[str, Any], folder: Path) -> str:
    """The text of `paper`, or the printed cells that `table3` or `claims` point at."""
    given = [key for key in ("paper", "table3", "claims") if key in entry]
    if len(given) != 1:
        problem = f"got {', '.join(given) or 'none'}; needed one of paper, table3, claims"
        raise defect(FILE, row, "paper", problem)
    if given == ["paper"]:
        return str(entry["paper"])
    if given == ["table3"]:
        check_entry(FILE, f"{row} table3", entry["table3"], {"row": str, "columns": list})
        rows = {line.name: line.cells for line in hyperparameters(folder)}
        cells = rows[known(FILE, row, "table3", entry["table3"]["row"], rows)]
        printed = [cells[known(FILE, row, "table3", c, cells)] for c in entry["table3"]["columns"]]
    else:
        values = {c.id: c.printed for c in claims(folder) if isinstance(c, AbsoluteClaim)}
        printed = [str(values[known(FILE, row, "claims", id, values)]) for id in entry["claims"]]
    return " / ".join(dict.fromkeys(printed))


@functools.cache
def deviations(folder: Path = FOLDER) -> tuple[Deviation, ...]:
    """The ledger, in the order of deviations.toml.

    Args:
        folder: Where deviations.toml, claims.toml and the tables are.

    Raises:
        ValueError: A file does not hold what it should; names file, entry and key.
    """
    data = read_toml(folder / FILE)
    check_entry(FILE, "top", data, {"deviation": list})
    texts = dict.fromkeys(("id", "group", "item", "released", "where", "follow", "action"), str)
    lists = dict.fromkeys(("fields", "recipes", "claims"), list)
    recipes = {c.setting.recipe for c in claims(folder) if isinstance(c, AbsoluteClaim)}
    found, rows = [], []
    for i, entry in enumerate(data["deviation"], 1):
        row = f"[[deviation]] {entry.get('id', i)}"
        check_entry(
            FILE,
            row,
            entry,
            {**texts, "sources": list},
            {"row": int, "paper": str, "table3": dict, "effect": str, **lists},
        )
        known(FILE, row, "group", entry["group"], GROUPS)
        known(FILE, row, "follow", entry["follow"], FOLLOW)
        for letter in entry["sources"]:
            known(FILE, row, "sources", letter, sources(folder))
        for recipe in entry.get("recipes", []):
            known(FILE, row, "recipes", recipe, recipes)
        if entry["follow"] == "both" and not ("fields" in entry and "recipes" in entry):
            raise defect(FILE, row, "follow", "'both' needs the fields and recipes that differ")
        rows.append((row, entry))
        found.append(
            Deviation(
                **{key: entry[key] for key in texts},
                row=entry.get("row"),
                paper=_paper_side(row, entry, folder),
                effect=entry.get("effect", ""),
                sources=tuple(entry["sources"]),
                fields=tuple(entry.get("fields", ())),
                recipes=tuple(entry.get("recipes", ())),
                claims=tuple(entry.get("claims", ())),
            )
        )
    distinct(FILE, "id", ((row, entry["id"]) for row, entry in rows))
    distinct(FILE, "row", ((row, entry["row"]) for row, entry in rows if "row" in entry))
    return tuple(found)
