"""Claims of the paper: its CD and CT scores, and the orderings that it states.

Absolute claims are made from the rows of Tables 1 and 2, so that no value is stored twice;
claims.toml says which recipe, protocol and tolerance decide them.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar, Literal

from msgspec import field

from cmrepro import settings
from cmrepro.paper.tables import FOLDER, Printed, ResultRow, hyperparameters, result_rows
from cmrepro.schema import Positive, Share, Struct, read_toml, unknown

Ablated = Literal["distance", "solver", "num_scales", "target_ema"]
Value = str | int | float
# Recipe fields that the ablations change, with the row of Table 3 that has their value.
ABLATED: dict[Ablated, str | None] = {
    "distance": None,  # in the text, so in claims.toml
    "solver": "ODE solver",
    "num_scales": "N",
    "target_ema": "mu",
}


class Metric(Struct, frozen=True, kw_only=True):
    """A score's label and its better direction."""

    label: str
    better: Literal["lower", "higher"]

    @property
    def higher_is_better(self) -> bool:
        """True if more is better."""
        return self.better == "higher"


class Tolerance(Struct, frozen=True, kw_only=True):
    """Largest distance of a mean from a printed value that it still reproduces.

    Attributes:
        spread_absolute: Run-to-run spread under the protocol, in units of the score.
        spread_relative: The same as a share of the printed value.
        relative: Difference between two correct implementations, as a share of the printed value.
        source: Where the spread comes from.
    """

    spread_absolute: Share
    spread_relative: Share
    relative: Share
    source: str

    def margin(self, printed: Printed) -> float:
        """Rounding of the printed digits + spread + relative part, in units of the score."""
        share = self.spread_relative + self.relative
        return printed.rounding + self.spread_absolute + share * printed.value


class Setting(Struct, frozen=True):
    """What has to be measured.

    Attributes:
        recipe: Name of the recipe, e.g. "cifar10-cd".
        nfe: Network evaluations an image.
        protocol: Name of the protocol.
        metric: Name of the metric.
        changes: (recipe field, value) that the claim fixes; the others are the recipe's.
    """

    recipe: str
    nfe: Positive
    protocol: str
    metric: settings.Metric
    changes: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        changes = "".join(f", {field} = {value}" for field, value in self.changes)
        return f"{self.recipe}, {self.nfe} step{'s' * (self.nfe > 1)}{changes}"


class AbsoluteClaim(Struct, frozen=True, kw_only=True):
    """One printed score of a CD or CT row.

    Attributes:
        id: E.g. "song2023/table1/cd/nfe1/fid".
        where: Place in the paper.
        dataset: Data set, as in the table.
        method: "CD" or "CT".
        training_data: Its training images, as records name them.
        network: Preset of the network.
        setting: Recipe, NFE, protocol and metric that decide it.
        printed: The printed cell.
        num_images: Number of generated images.
        protocol_version: Version of the protocol that a record must carry.
        tolerance: Rule of the margin.
        batch_size: Batch size of the training, images (Table 3).
        total_steps: Training iterations (Table 3).
        ema_rate: EMA rate of the sampled weights (Table 3).
        initialisation: "teacher" (EDM) or "random".
        selection: Which checkpoint, or "not stated".
        times: How the sampling times were placed.
    """

    kind: ClassVar[str] = "absolute"
    id: str
    where: str
    dataset: str
    method: str
    training_data: str
    network: str
    setting: Setting
    printed: Printed
    num_images: int
    protocol_version: int
    tolerance: Tolerance
    batch_size: int
    total_steps: int
    ema_rate: float
    initialisation: settings.Initialisation
    selection: str
    times: str

    @property
    def value(self) -> float:
        """The printed value."""
        return self.printed.value

    @property
    def margin(self) -> float:
        """Largest distance from `value` that counts as equal, in units of the score."""
        return self.tolerance.margin(self.printed)

    @property
    def images_seen(self) -> int:
        """Images seen in training: batch size x iterations."""
        return self.batch_size * self.total_steps


class Ordering(Struct, frozen=True, kw_only=True):
    """One model is better than others.

    Attributes:
        id: E.g. "song2023/ordering/cd-better-than-ct-nfe1/cifar10".
        statement: The claim in words.
        where: Place in the paper.
        basis: "tables" (follows from printed cells), "text" (in words) or "figure" (curves only).
        dataset: Data set, as in the tables.
        better: The side that wins.
        worse: The sides that it beats, all of them.
        num_images: Number of generated images on each side.
        note: A remark for the reader, or "".
    """

    kind: ClassVar[str] = "ordering"
    id: str
    statement: str
    where: str
    basis: str
    dataset: str
    better: Setting
    worse: tuple[Setting, ...]
    num_images: int
    note: str


Claim = AbsoluteClaim | Ordering


class _Protocol(Struct, frozen=True):
    version: Positive
    num_images: Positive
    tolerances: dict[settings.Metric, str]
    source: str


class _Model(Struct, frozen=True):
    recipe: str
    training_data: str
    network: str
    distance: str
    dataset: str
    method: Literal["CD", "CT"]
    table3: str
    protocol: str
    initialisation: settings.Initialisation
    selection: str


class _Side(Struct, frozen=True):
    method: Literal["CD", "CT"]
    nfe: Positive
    changes: dict[Ablated, Value] = field(default_factory=dict)


class _Ordering(Struct, frozen=True):
    name: str
    statement: str
    where: str
    basis: Literal["tables", "text", "figure"]
    metric: settings.Metric
    datasets: tuple[str, ...]
    better: _Side
    worse: tuple[_Side, ...]
    note: str = ""


class _Demo(Struct, frozen=True):
    recipes: dict[str, dict[Ablated, Value]]
    stand_ins: dict[str, str]


class _File(Struct, frozen=True):
    metrics: dict[str, Metric]
    tolerances: dict[str, Tolerance]
    protocols: dict[str, _Protocol]
    times: dict[str, str]
    model: tuple[_Model, ...]
    demo: _Demo
    ordering: tuple[_Ordering, ...]


@functools.cache
def _file() -> _File:
    return read_toml(_File, FOLDER / "claims.toml")


def metrics() -> Mapping[str, Metric]:
    """Label and better direction of each metric (Section 6)."""
    return _file().metrics


@functools.cache
def ablated_fields(
    recipe: str, changes: tuple[tuple[str, Value], ...] = (), demo: bool = False
) -> Mapping[str, Value | None] | None:
    """Values of a recipe in the fields of `ABLATED`.

    Args:
        recipe: Name of a model of the tables, e.g. "cifar10-cd".
        changes: (field, value) of a setting, fixed otherwise than in the recipe.
        demo: Take the demo's recipe, where another distance stands in for LPIPS.

    Returns:
        Value by field, None where the field follows a schedule or does not apply; None for all
        of them if there is no such recipe.
    """
    if demo:
        of_demo = _file().demo
        if recipe not in of_demo.recipes:
            return None
        changed = {field: of_demo.stand_ins.get(str(value), value) for field, value in changes}
        return dict.fromkeys(ABLATED) | of_demo.recipes[recipe] | changed
    models = {model.recipe: model for model in _file().model}
    if recipe not in models:
        return None
    rows = {row.name: row.cells.get(models[recipe].table3, "") for row in hyperparameters()}
    found: dict[str, Value | None] = {"distance": models[recipe].distance}
    for name, row in ABLATED.items():
        if row and (cell := rows[row]):
            found[name] = cell.lower() if name == "solver" else Printed(cell).value
    return dict.fromkeys(ABLATED) | found | dict(changes)


@functools.cache
def claims() -> tuple[Claim, ...]:
    """Every claim: the cells of CD and CT rows in the order of the tables, then the orderings."""
    models: dict[tuple[str, str], _Model] = {(m.dataset, m.method): m for m in _file().model}
    absolute = [
        _absolute(row, metric, models[row.dataset, row.method])
        for row in (*result_rows(1), *result_rows(2))
        if row.method in ("CD", "CT")
        for metric in row.scores
    ]
    orderings = [_ordering(entry, slug) for entry in _file().ordering for slug in entry.datasets]
    return (*absolute, *orderings)


def _absolute(row: ResultRow, metric: settings.Metric, model: _Model) -> AbsoluteClaim:
    """The claim of one cell of Table 1 or 2."""
    place = "table1" if row.table == 1 else f"table2/{model.recipe.rpartition('-')[0]}"
    protocol = _file().protocols[model.protocol]
    table3 = {line.name: line for line in hyperparameters()}
    return AbsoluteClaim(
        id=f"song2023/{place}/{row.method.lower()}/nfe{row.nfe}/{metric}",
        where=f"Table {row.table}, {row.dataset}, {row.method}, NFE {row.nfe}",
        dataset=row.dataset,
        method=row.method,
        training_data=model.training_data,
        network=model.network,
        setting=Setting(model.recipe, row.nfe, model.protocol, metric),
        printed=row.scores[metric],
        num_images=protocol.num_images,
        protocol_version=protocol.version,
        tolerance=_file().tolerances[protocol.tolerances[metric]],
        batch_size=int(table3["Batch size"].value(model.table3)),
        total_steps=int(table3["Training iterations"].value(model.table3)),
        ema_rate=table3["EMA decay rate"].value(model.table3),
        initialisation=model.initialisation,
        selection=model.selection,
        times=_file().times[str(row.nfe)],
    )


def _ordering(entry: _Ordering, slug: str) -> Ordering:
    """An ordering on one data set."""
    models = {model.recipe: model for model in _file().model}

    def setting(side: _Side) -> Setting:
        model = models[f"{slug}-{side.method.lower()}"]
        changes = tuple(side.changes.items())
        return Setting(model.recipe, side.nfe, model.protocol, entry.metric, changes)

    better = setting(entry.better)
    return Ordering(
        id=f"song2023/ordering/{entry.name}/{slug}",
        statement=entry.statement,
        where=entry.where,
        basis=entry.basis,
        dataset=models[better.recipe].dataset,
        better=better,
        worse=tuple(setting(side) for side in entry.worse),
        num_images=_file().protocols[better.protocol].num_images,
        note=entry.note,
    )


def claim(id: str) -> Claim:
    """The claim with this id.

    Raises:
        ValueError: There is none; names the nearest.
    """
    by_id = {claim.id: claim for claim in claims()}
    if id not in by_id:
        raise ValueError(unknown("claim", id, by_id, "cmrepro claims"))
    return by_id[id]
