"""What the paper claims: its CD and CT scores, and the orderings that it states.

Absolute claims are made from the rows of Tables 1 and 2, so that no value is stored twice;
claims.toml adds which recipe, protocol and tolerance decide them.
"""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrepro.paper.reading import FOLDER, check_entry, defect, distinct, known, read_toml
from cmrepro.paper.statements import (
    AbsoluteClaim,
    Claim,
    Metric,
    Ordering,
    Setting,
    Tolerance,
)
from cmrepro.paper.tables import (
    HyperparameterRow,
    Printed,
    ResultRow,
    hyperparameters,
    result_rows,
)

FILE = "claims.toml"
METHODS = ("CD", "CT")
# Recipe fields that the ablations change, with the row of Table 3 that has their value.
ABLATED = {
    "distance": None,  # in the text, so in claims.toml
    "solver": "ODE solver",
    "num_scales": "N",
    "target_ema": "mu",
}


@dataclass(frozen=True)
class _Protocol:
    """A protocol of claims.toml."""

    version: int
    num_images: int
    tolerances: Mapping[str, Tolerance]


@dataclass(frozen=True)
class _Model:
    """A model of claims.toml with its column of Table 3."""

    recipe: str
    table: int
    dataset: str
    method: str
    data: str
    network: str
    distance: str
    table3: str
    protocol: str
    initialisation: str
    selection: str

    @property
    def slug(self) -> str:
        """The data set as ids have it."""
        return self.recipe.removesuffix(f"-{self.method.lower()}")


def _metrics(data: dict[str, Any]) -> dict[str, Metric]:
    found = {}
    for name, entry in data["metrics"].items():
        row = f"[metrics] {name}"
        check_entry(FILE, row, entry, {"label": str, "better": str})
        better = known(FILE, row, "better", entry["better"], ("lower", "higher"))
        found[name] = Metric(name, entry["label"], better == "higher")
    return found


def _protocols(data: dict[str, Any]) -> dict[str, _Protocol]:
    shares = dict.fromkeys(("spread_absolute", "spread_relative", "relative"), float)
    rules = {}
    for name, entry in data["tolerances"].items():
        row = f"[tolerances.{name}]"
        check_entry(FILE, row, entry, {**shares, "source": str})
        for key in shares:
            if not 0 <= entry[key] < 1:
                raise defect(FILE, row, key, f"got {entry[key]}, needed 0 <= {key} < 1")
        rules[name] = Tolerance(name, **entry)
    keys = {"version": int, "num_images": int, "tolerances": dict, "source": str}
    protocols = {}
    for name, entry in data["protocols"].items():
        row = f"[protocols.{name}]"
        check_entry(FILE, row, entry, keys)
        for metric, rule in entry["tolerances"].items():
            known(FILE, row, "tolerances", metric, data["metrics"])
            known(FILE, row, "tolerances", rule, rules)
        tolerances = {metric: rules[rule] for metric, rule in entry["tolerances"].items()}
        protocols[name] = _Protocol(entry["version"], entry["num_images"], tolerances)
    return protocols


def _models(data: dict[str, Any], folder: Path) -> dict[str, _Model]:
    keys = {name: int if name == "table" else str for name in _Model.__annotations__}
    columns = hyperparameters(folder)[0].cells
    models = {}
    rows = [(f"[[model]] {i}", entry) for i, entry in enumerate(data["model"], 1)]
    for row, entry in rows:
        check_entry(FILE, row, entry, keys)
        known(FILE, row, "table", str(entry["table"]), ("1", "2"))
        known(FILE, row, "method", entry["method"], METHODS)
        known(FILE, row, "table3", entry["table3"], columns)
        known(FILE, row, "protocol", entry["protocol"], data["protocols"])
        known(FILE, row, "initialisation", entry["initialisation"], ("teacher", "random"))
        models[entry["recipe"]] = _Model(**entry)
    distinct(FILE, "recipe", ((row, entry["recipe"]) for row, entry in rows))
    distinct(FILE, "dataset", ((row, (e["dataset"], e["method"])) for row, e in rows))
    for name, fields in data["demo"]["recipes"].items():
        known(FILE, "[demo.recipes]", "recipe", name, models)
        for field in fields:
            known(FILE, "[demo.recipes]", name, field, ABLATED)
    return models


def _absolute(
    row: ResultRow,
    model: _Model,
    protocol: _Protocol,
    times: str,
    table3: Mapping[str, HyperparameterRow],
) -> list[AbsoluteClaim]:
    """The claims of one row of Table 1 or 2."""
    place = "table1" if row.table == 1 else f"table2/{model.slug}"
    common: dict[str, Any] = {
        "where": f"Table {row.table}, {row.dataset}, {row.method}, NFE {row.nfe}",
        "dataset": row.dataset,
        "method": row.method,
        "training_data": model.data,
        "network": model.network,
        "verified": row.verified,
        "num_images": protocol.num_images,
        "protocol_version": protocol.version,
        "batch_size": int(table3["Batch size"].value(model.table3)),
        "total_steps": int(table3["Training iterations"].value(model.table3)),
        "ema_rate": table3["EMA decay rate"].value(model.table3),
        "initialisation": model.initialisation,
        "selection": model.selection,
        "times": times,
    }
    return [
        AbsoluteClaim(
            id=f"song2023/{place}/{row.method.lower()}/nfe{row.nfe}/{metric}",
            setting=Setting(model.recipe, row.nfe, model.protocol, metric),
            printed=printed,
            tolerance=protocol.tolerances[metric],
            **common,
        )
        for metric, printed in row.scores.items()
    ]


def _absolutes(
    data: dict[str, Any],
    models: dict[str, _Model],
    protocols: dict[str, _Protocol],
    folder: Path,
) -> list[AbsoluteClaim]:
    """A claim for every cell of a CD or CT row; each model has a row for each number of steps."""
    table3 = {row.name: row for row in hyperparameters(folder)}
    by_row = {(m.table, m.dataset, m.method): m for m in models.values()}
    found = []
    wanted = {(key, int(steps)) for key in by_row for steps in data["times"]}
    for row in [*result_rows(1, folder), *result_rows(2, folder)]:
        if row.method not in METHODS:
            continue
        key = (row.table, row.dataset, row.method)
        where = f"{row.dataset}, {row.method}, NFE {row.nfe}"
        if (key, row.nfe) not in wanted:
            raise defect(f"table{row.table}.csv", where, "method", f"{FILE} has no model for it")
        wanted.remove((key, row.nfe))
        protocol = protocols[by_row[key].protocol]
        if set(row.scores) != set(protocol.tolerances):
            raise defect(
                f"table{row.table}.csv",
                where,
                ", ".join(sorted(set(row.scores) ^ set(protocol.tolerances))),
                f"protocol {by_row[key].protocol} scores {', '.join(protocol.tolerances)}",
            )
        times = data["times"][str(row.nfe)]
        found += _absolute(row, by_row[key], protocol, times, table3)
    for (number, dataset, method), steps in sorted(wanted):
        where = f"{dataset}, {method}, NFE {steps}"
        raise defect(
            f"table{number}.csv", where, "nfe", f"{FILE} has this model, the table no row"
        )
    return found


def _side(
    row: str, key: str, entry: dict[str, Any], slug: str, metric: str, models: dict[str, _Model]
) -> Setting:
    """One side of an ordering on one data set."""
    check_entry(FILE, f"{row} {key}", entry, {"method": str, "steps": int}, {"changes": dict})
    recipe = known(FILE, row, key, f"{slug}-{entry['method'].lower()}", models)
    changes = tuple(entry.get("changes", {}).items())
    for field, _ in changes:
        known(FILE, f"{row} {key}", "changes", field, ABLATED)
    return Setting(recipe, entry["steps"], models[recipe].protocol, metric, changes)


def _orderings(
    data: dict[str, Any], models: dict[str, _Model], protocols: dict[str, _Protocol]
) -> list[Ordering]:
    texts = dict.fromkeys(("name", "statement", "where", "basis", "metric"), str)
    slugs = {model.slug: model.dataset for model in models.values()}
    found = []
    for i, entry in enumerate(data["ordering"], 1):
        row = f"[[ordering]] {i}"
        keys = {**texts, "datasets": list, "better": dict, "worse": list}
        check_entry(FILE, row, entry, keys, {"note": str})
        known(FILE, row, "basis", entry["basis"], ("tables", "text", "figure"))
        metric = known(FILE, row, "metric", entry["metric"], data["metrics"])
        for slug in entry["datasets"]:
            known(FILE, row, "datasets", slug, slugs)
            better = _side(row, "better", entry["better"], slug, metric, models)
            worse = [_side(row, "worse", side, slug, metric, models) for side in entry["worse"]]
            distinct(FILE, "worse", ((row, side) for side in [better, *worse]))
            found.append(
                Ordering(
                    id=f"song2023/ordering/{entry['name']}/{slug}",
                    statement=entry["statement"],
                    where=entry["where"],
                    basis=entry["basis"],
                    dataset=slugs[slug],
                    better=better,
                    worse=tuple(worse),
                    num_images=protocols[better.protocol].num_images,
                    note=entry.get("note", ""),
                )
            )
    return found


def _data(folder: Path) -> dict[str, Any]:
    data = read_toml(folder / FILE)
    names = ("metrics", "tolerances", "protocols", "times", "demo")
    parts: dict[str, type] = dict.fromkeys(names, dict)
    check_entry(FILE, "top", data, {**parts, "model": list, "ordering": list})
    check_entry(FILE, "[times]", data["times"], dict.fromkeys(("1", "2"), str))
    check_entry(FILE, "[demo]", data["demo"], {"recipes": dict, "stand_ins": dict})
    return data


@functools.cache
def metrics(folder: Path = FOLDER) -> Mapping[str, Metric]:
    """The scores of the paper by name, with the direction that is better (Section 6)."""
    return _metrics(_data(folder))


@functools.cache
def ablated_fields(
    recipe: str, changes: tuple[tuple[str, str | int | float], ...] = (), demo: bool = False
) -> Mapping[str, str | int | float | None] | None:
    """What a recipe has in the fields of `ABLATED`.

    Args:
        recipe: Name of a model of the tables, e.g. "cifar10-cd".
        changes: Of a setting: (field, value) fixed otherwise.
        demo: Whether of the demo's recipe, where another distance stands in for LPIPS.

    Returns:
        Value by field, None where the field follows a schedule or does not apply; None in the
        place of all where there is no such recipe.
    """
    data = _data(FOLDER)
    if demo:
        fields = data["demo"]["recipes"].get(recipe)
        stand_ins = data["demo"]["stand_ins"]
        changes = tuple((field, stand_ins.get(value, value)) for field, value in changes)
        return None if fields is None else dict.fromkeys(ABLATED) | fields | dict(changes)
    model = _models(data, FOLDER).get(recipe)
    if model is None:
        return None
    rows = {row.name: row.cells.get(model.table3, "") for row in hyperparameters()}
    found: dict[str, str | int | float | None] = {"distance": model.distance}
    for field, row in ABLATED.items():
        if row and (cell := rows[row]):
            found[field] = cell.lower() if field == "solver" else Printed(cell).value
    return dict.fromkeys(ABLATED) | found | dict(changes)


@functools.cache
def claims(folder: Path = FOLDER) -> tuple[Claim, ...]:
    """Every claim: the cells of CD and CT rows in the order of the tables, then the orderings.

    Args:
        folder: Where claims.toml and the tables are.

    Raises:
        ValueError: A file does not hold what it should; names file, row and column.
    """
    data = _data(folder)
    _metrics(data)
    protocols = _protocols(data)
    models = _models(data, folder)
    found: list[Claim] = [
        *_absolutes(data, models, protocols, folder),
        *_orderings(data, models, protocols),
    ]
    distinct(FILE, "id", (("claims", claim.id) for claim in found))
    return tuple(found)


def claim(id: str) -> Claim:
    """The claim with this id.

    Raises:
        ValueError: There is none; names the nearest.
    """
    by_id = {claim.id: claim for claim in claims()}
    if id not in by_id:
        nearest = difflib.get_close_matches(id, by_id, n=3, cutoff=0.0)
        raise ValueError(
            f"unknown claim '{id}': the nearest of {len(by_id)} are {', '.join(nearest)}; "
            "`cmrepro claims` lists all"
        )
    return by_id[id]
