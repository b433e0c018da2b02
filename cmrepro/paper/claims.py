"""Claims of the paper, its CD and CT scores and orderings, and its deviations from the code.

Absolute claims are made from the rows of Tables 1 and 2, so that no value is stored twice;
claims.toml says which recipe, protocol and tolerance decide them.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Literal

from msgspec.structs import asdict

from cmrepro import settings
from cmrepro.paper.tables import FOLDER, METRICS, Printed, ResultRow, hyperparameters, result_rows
from cmrepro.schema import Positive, Struct, convert, lookup, read_toml

Value = str | int | float


class Setting(Struct, frozen=True):
    """Model, sampler and metric of a score."""

    recipe: str  # name of the recipe, e.g. "cifar10-cd"
    nfe: Positive  # network evaluations per image
    protocol: str  # name of the protocol
    metric: settings.Metric
    # (recipe field, value) that the claim fixes; the others are the recipe's
    changes: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        changes = "".join(f", {field} = {value}" for field, value in self.changes)
        return f"{self.recipe}, {self.nfe} step{'s' * (self.nfe > 1)}{changes}"


class Model(Struct, frozen=True, kw_only=True):
    """The model of a CD, CT or PD row."""

    dataset: str  # data set, as in the tables
    method: str  # "CD", "CT" or "PD"
    table3: str | None = None  # its column of table3.csv, which PD does not have
    training_data: str  # its training images, as records name them
    network: str  # preset of the network
    distance: str  # d of its loss
    protocol: str  # protocol of its scores
    initialisation: settings.Initialisation  # "teacher" (EDM) or "random"
    selection: str  # which checkpoint, or "not stated"
    evaluated_steps: Positive | None = None  # of the scored file, where not those of Table 3
    evaluated_deviation: str = ""  # entry of the ledger that says so


class AbsoluteClaim(Model, frozen=True, kw_only=True):
    """One printed score of a model."""

    kind: ClassVar[str] = "absolute"
    basis: ClassVar[str] = "tables"  # as in `Ordering`
    notes: ClassVar[tuple[str, ...]] = ()
    id: str  # e.g. "song2023/table1/cd/nfe1/fid"
    where: str  # place in the paper
    setting: Setting  # recipe, NFE, protocol and metric that decide it
    printed: Printed  # the printed cell
    margin: float  # largest distance from `value` that counts as equal, in units of the score
    num_images: int  # number of generated images
    protocol_version: int  # version of the protocol that a record must carry
    batch_size: int  # batch size of the training, images (Table 3)
    total_steps: int  # training iterations (Table 3)
    ema_rate: float  # EMA rate of the sampled weights (Table 3)

    @property
    def value(self) -> float:
        """The printed value."""
        return self.printed.value

    @property
    def statement(self) -> str:
        """The claim in words."""
        steps = f"{self.setting.nfe} step{'s' * (self.setting.nfe > 1)}"
        return f"{METRICS[self.setting.metric]} of {self.method}, {steps}"

    @property
    def images_seen(self) -> int:
        """Images seen in training: batch size x iterations."""
        return self.batch_size * self.total_steps


class Ordering(Struct, frozen=True, kw_only=True):
    """One model is better than others."""

    kind: ClassVar[str] = "ordering"
    id: str  # e.g. "song2023/ordering/cd-better-than-ct-nfe1/cifar10"
    statement: str  # the claim in words
    where: str  # place in the paper
    basis: str  # "tables" (follows from printed cells), "text" (in words) or "figure" (curves)
    dataset: str  # data set, as in the tables
    better: Setting  # the side that wins
    worse: tuple[Setting, ...]  # the sides that it beats, all of them
    num_images: int  # number of generated images on each side
    notes: tuple[str, ...] = ()  # limits of the claim or of its test


Claim = AbsoluteClaim | Ordering


@functools.cache
def _file() -> dict[str, Any]:
    return read_toml(dict[str, Any], FOLDER / "claims.toml")


@functools.cache
def _models() -> dict[str, Model]:
    """Model of each recipe."""
    return convert(dict[str, Model], _file()["model"], "claims.toml")


class StandIn(Struct, frozen=True, kw_only=True):
    """A recipe's value in the demo that stands in for another of the paper."""

    name: str  # the paper's, in words, e.g. "LPIPS"
    value: str  # the demo's, in recipes
    by: str  # the demo's, in words


@functools.cache
def stand_ins() -> Mapping[Value, StandIn]:
    """The demo's stand-ins by the paper's value."""
    return convert(dict[Value, StandIn], _file()["demo"]["stand_ins"], "claims.toml")


def training_datasets(recipe: str, demo: bool) -> tuple[str, ...]:
    """Training images with which a model tests a claim: the paper's, or the demo's too."""
    data = _models()[recipe].training_data
    return (data, *(_file()["demo"]["training_data"].get(data, ()) if demo else ()))


class ClaimsFile(Struct, frozen=True, kw_only=True):
    """A claims file of one's own: tables [[absolute]] and [[ordering]] with every field.

    `recipe` of a setting is a name in `stands_for`, or that of a model from elsewhere.
    """

    absolute: tuple[AbsoluteClaim, ...] = ()
    ordering: tuple[Ordering, ...] = ()


_OWN: ContextVar[tuple[Claim, ...]] = ContextVar("own claims", default=())


@contextlib.contextmanager
def added_claims(path: Path) -> Iterator[None]:
    """Context in which `claims` has those of a file of one's own too."""
    file, known = read_toml(ClaimsFile, path), {claim.id for claim in claims()}
    own: tuple[Claim, ...] = (*file.absolute, *file.ordering)
    for claim in own:
        if claim.id in known:
            raise ValueError(f"{path}: the id {claim.id} is taken; choose another")
        known.add(claim.id)
    token = _OWN.set(own)
    yield
    _OWN.reset(token)


def claims() -> tuple[Claim, ...]:
    """Every claim of the paper, then those of `added_claims`."""
    return (*_paper_claims(), *_OWN.get())


@functools.cache
def _paper_claims() -> tuple[Claim, ...]:
    """The cells of CD and CT rows in the order of the tables, then the orderings."""
    recipes = recipes_of_rows()
    absolute = [
        _absolute(row, metric, recipe)
        for row in (*result_rows(1), *result_rows(2))
        if (recipe := recipes.get((row.dataset, row.method))) and _models()[recipe].table3
        for metric in row.scores
    ]
    orderings = [_ordering(e, slug) for e in _file()["ordering"] for slug in e["datasets"]]
    return (*absolute, *orderings)


def recipes_of_rows() -> dict[tuple[str, str], str]:
    """Recipe of the rows of a data set and method, for each row that this suite can make."""
    return {(m.dataset, m.method): recipe for recipe, m in _models().items()}


def _absolute(row: ResultRow, metric: settings.Metric, recipe: str) -> AbsoluteClaim:
    """The claim of one cell of Table 1 or 2."""
    model, printed = _models()[recipe], row.scores[metric]
    assert model.table3
    protocol = _file()["protocols"][model.protocol]
    tolerance = _file()["tolerances"][protocol["tolerances"][metric]]
    share = tolerance["spread_relative"] + tolerance["relative"]
    table3 = {line.name: line for line in hyperparameters()}
    place = "table1" if row.table == 1 else f"table2/{recipe.rpartition('-')[0]}"
    return AbsoluteClaim(
        **asdict(model),
        id=f"song2023/{place}/{row.method.lower()}/nfe{row.nfe}/{metric}",
        where=f"Table {row.table}, {row.dataset}, {row.method}, NFE {row.nfe}",
        setting=Setting(recipe, row.nfe, model.protocol, metric),
        printed=printed,
        margin=printed.rounding + tolerance["spread_absolute"] + share * printed.value,
        num_images=protocol["num_images"],
        protocol_version=protocol["version"],
        batch_size=int(table3["Batch size"].value(model.table3)),
        total_steps=int(table3["Training iterations"].value(model.table3)),
        ema_rate=table3["EMA decay rate"].value(model.table3),
    )


def _ordering(entry: dict[str, Any], slug: str) -> Ordering:
    """An ordering on one data set."""

    def setting(side: dict[str, Any]) -> Setting:
        recipe = f"{slug}-{side['method'].lower()}"
        protocol, changes = _models()[recipe].protocol, tuple(side.get("changes", {}).items())
        return Setting(recipe, side["nfe"], protocol, entry["metric"], changes)

    better = setting(entry["better"])
    return Ordering(
        id=f"song2023/ordering/{entry['name']}/{slug}",
        statement=entry["statement"],
        where=entry["where"],
        basis=entry["basis"],
        dataset=_models()[better.recipe].dataset,
        better=better,
        worse=tuple(map(setting, entry["worse"])),
        num_images=_file()["protocols"][better.protocol]["num_images"],
        notes=tuple(entry.get("notes", ())),
    )


def claim(id: str) -> Claim:
    """The claim with this id."""
    return lookup("claim", id, {claim.id: claim for claim in claims()}, "cmrepro claims")


class Deviation(Struct, frozen=True, kw_only=True):
    """One place where the paper and its official code, or another source, disagree."""

    id: str  # e.g. "ct-imagenet64-learning-rate"
    row: Positive | None = None  # number of the finding, 1 to 32; None for the others
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
    entries = read_toml(dict[str, Any], FOLDER / "deviations.toml")["deviation"]
    for entry in entries:
        cells = entry.pop("table3", {"columns": []})
        printed = [rows[cells["row"]][column] for column in cells["columns"]]
        printed += [values[id] for id in entry.get("claims", [])]
        entry.setdefault("paper", " / ".join(dict.fromkeys(printed)))
    return convert(tuple[Deviation, ...], entries, "deviations.toml")
