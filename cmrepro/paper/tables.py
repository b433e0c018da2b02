"""Tables 1, 2 and 3 of the paper and later work, as printed."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

from cmrepro.paper.reading import FOLDER, check_verified, defect, distinct, read_csv

METRICS = ("fid", "is", "precision", "recall")
# Recipe of each column; LSUN's stand for Bedroom and Cat alike.
TABLE3_RECIPES = {
    "cifar10_cd": "cifar10-cd",
    "cifar10_ct": "cifar10-ct",
    "imagenet64_cd": "imagenet64-cd",
    "imagenet64_ct": "imagenet64-ct",
    "lsun256_cd": "lsun-bedroom256-cd",
    "lsun256_ct": "lsun-bedroom256-ct",
}
TABLE3_WORDS = frozenset({"Heun", "Euler", "Yes", "No"})
LATER_STATUS = re.compile(
    r"verified(?: \((?:secondary|one source)\))?(?:;.+)?|(?:version-dependent|conflict): .+"
)
LATER_TRAINING = re.compile(r"\(batch (?P<batch>\d+), (?P<steps>\d+k) iterations\)")


@dataclass(frozen=True)
class Printed:
    """A number as the paper prints it, e.g. "13.0", "4e-4", "800k".

    Raises:
        ValueError: Not such a number.
    """

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?k?", self.text):
            raise ValueError(f"got {self.text!r}, needed a number such as 13.0, 4e-4 or 800k")

    def __str__(self) -> str:
        return self.text

    @property
    def _decimal(self) -> Decimal:
        return Decimal(self.text.removesuffix("k")).scaleb(3 * self.text.endswith("k"))

    @property
    def value(self) -> float:
        """The number."""
        return float(self._decimal)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit: what rounding may have hidden."""
        return float(Decimal(5).scaleb(int(self._decimal.as_tuple().exponent) - 1))


@dataclass(frozen=True)
class ResultRow:
    """One row of Table 1 or 2.

    Attributes:
        table: 1 or 2.
        dataset: Data set, as in the CSV.
        category: Heading under which the row is printed.
        method: Name of the method, as printed.
        nfe: Number of network evaluations for one image.
        scores: The printed cells by metric: "fid", "is", "precision", "recall".
        verified: In which sources the row is printed identically.
    """

    table: int
    dataset: str
    category: str
    method: str
    nfe: int
    scores: Mapping[str, Printed]
    verified: str


@dataclass(frozen=True)
class HyperparameterRow:
    """One row of Table 3.

    Attributes:
        name: The hyperparameter, as printed (mu and mu0 spelled out).
        cells: The printed cells by column, those that are empty left out.
        verified: In which sources the row is printed identically, and what the code has instead.
    """

    name: str
    cells: Mapping[str, str]
    verified: str

    def value(self, column: str) -> float:
        """A cell as a number.

        Raises:
            ValueError: It is a word.
        """
        return Printed(self.cells[column]).value


@dataclass(frozen=True)
class LaterRow:
    """One result of a later paper, for context.

    Attributes:
        paper: Title, or name of a re-implementation.
        arxiv: arXiv number, "" without one.
        dataset: Data set.
        method: Method and setting.
        nfe: Number of network evaluations for one image.
        fid: The printed FID.
        verified: How sure the value is.
        source: Where it was seen.
        images_seen: Images seen in training, where stated.
    """

    paper: str
    arxiv: str
    dataset: str
    method: str
    nfe: int
    fid: Printed
    verified: str
    source: str
    images_seen: int | None

    @property
    def global_batch(self) -> int | None:
        """Batch of the training, where the method says it: "(batch 128, 400k iterations)"."""
        found = LATER_TRAINING.search(self.method)
        return int(found["batch"]) if found else None

    @property
    def training_steps(self) -> int | None:
        """Iterations of the training, likewise."""
        found = LATER_TRAINING.search(self.method)
        return int(Printed(found["steps"]).value) if found else None


def _text(file: str, row: str, cells: Mapping[str, str], column: str) -> str:
    """A cell that has to be filled in."""
    if not cells[column].strip():
        raise defect(file, row, column, "is empty; fill it in")
    return cells[column]


def _count(file: str, row: str, cells: Mapping[str, str], column: str) -> int:
    """A cell that holds a positive whole number."""
    if not re.fullmatch(r"[1-9]\d*", cells[column]):
        problem = f"got {cells[column]!r}, needed a positive whole number"
        raise defect(file, row, column, problem)
    return int(cells[column])


def _printed(file: str, row: str, cells: Mapping[str, str], column: str) -> Printed:
    """A cell that holds a printed number."""
    try:
        return Printed(cells[column])
    except ValueError as error:
        raise defect(file, row, column, str(error)) from None


@functools.cache
def result_rows(number: int, folder: Path = FOLDER) -> tuple[ResultRow, ...]:
    """Table 1 (CIFAR-10) or 2 (ImageNet-64, LSUN) of the paper.

    Args:
        number: 1 or 2.
        folder: Where the CSV files are.

    Raises:
        ValueError: The CSV file does not hold what it should.
    """
    file = f"table{number}.csv"
    columns = ("dataset", "category", "method", "nfe", *METRICS, "verified")
    rows = read_csv(folder / file, columns)
    distinct(
        file, "dataset, method, nfe", ((r, (c["dataset"], c["method"], c["nfe"])) for r, c in rows)
    )
    return tuple(
        ResultRow(
            table=number,
            dataset=_text(file, row, cells, "dataset"),
            category=_text(file, row, cells, "category"),
            method=_text(file, row, cells, "method"),
            nfe=_count(file, row, cells, "nfe"),
            scores=MappingProxyType(
                {m: _printed(file, row, cells, m) for m in METRICS if cells[m]}
            ),
            verified=check_verified(folder, file, row, cells["verified"]),
        )
        for row, cells in rows
    )


@functools.cache
def hyperparameters(folder: Path = FOLDER) -> tuple[HyperparameterRow, ...]:
    """Table 3 of the paper.

    Raises:
        ValueError: table3.csv does not hold what it should.
    """
    file = "table3.csv"
    rows = read_csv(folder / file, ("hyperparameter", *TABLE3_RECIPES, "verified"))
    distinct(file, "hyperparameter", ((row, cells["hyperparameter"]) for row, cells in rows))
    for row, cells in rows:
        for column in TABLE3_RECIPES:
            if cells[column] and cells[column] not in TABLE3_WORDS:
                _printed(file, row, cells, column)
    return tuple(
        HyperparameterRow(
            name=_text(file, row, cells, "hyperparameter"),
            cells=MappingProxyType({c: cells[c] for c in TABLE3_RECIPES if cells[c]}),
            verified=check_verified(folder, file, row, cells["verified"]),
        )
        for row, cells in rows
    )


@functools.cache
def later_work(folder: Path = FOLDER) -> tuple[LaterRow, ...]:
    """Results of later few-step models.

    Raises:
        ValueError: later_work.csv does not hold what it should.
    """
    file = "later_work.csv"
    columns = (
        "paper",
        "arxiv",
        "dataset",
        "method",
        "nfe",
        "fid",
        "verified",
        "source",
        "images_seen",
    )
    rows = read_csv(folder / file, columns)
    distinct(file, "all", ((row, tuple(cells.items())) for row, cells in rows))
    for row, cells in rows:
        if not LATER_STATUS.fullmatch(cells["verified"]):
            problem = f"got {cells['verified']!r}, needed verified, version-dependent or conflict"
            raise defect(file, row, "verified", problem)
    found = tuple(
        LaterRow(
            paper=_text(file, row, cells, "paper"),
            arxiv=cells["arxiv"],
            dataset=_text(file, row, cells, "dataset"),
            method=_text(file, row, cells, "method"),
            nfe=_count(file, row, cells, "nfe"),
            fid=_printed(file, row, cells, "fid"),
            verified=cells["verified"],
            source=_text(file, row, cells, "source"),
            images_seen=_count(file, row, cells, "images_seen") if cells["images_seen"] else None,
        )
        for row, cells in rows
    )
    for (row, _), result in zip(rows, found, strict=True):
        batch, steps = result.global_batch, result.training_steps
        if batch and steps and batch * steps != result.images_seen:
            problem = f"got {result.images_seen}, needed batch x iterations = {batch * steps}"
            raise defect(file, row, "images_seen", problem)
    return found
