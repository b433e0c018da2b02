"""Tables 1, 2 and 3 of the paper and later work, as printed."""

import csv
import functools
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from cmrepro import settings
from cmrepro.schema import Positive, Struct, convert
from cmrepro.settings import Metric

FOLDER = Path(__file__).parent
# Labels of metrics; the paper has FID, IS, precision and recall.
METRICS: dict[Metric, str] = {metric: metric for metric in settings.METRICS}
METRICS |= {"fid": "FID", "sfid": "sFID", "is": "IS", "kid": "KID"}
LOWER_IS_BETTER = ("fid", "sfid", "kid")  # of the others more is better (Section 6)
# Recipe of each column; LSUN's stand for Bedroom and Cat alike.
TABLE3_RECIPES = {
    "cifar10_cd": "cifar10-cd",
    "cifar10_ct": "cifar10-ct",
    "imagenet64_cd": "imagenet64-cd",
    "imagenet64_ct": "imagenet64-ct",
    "lsun256_cd": "lsun-bedroom256-cd",
    "lsun256_ct": "lsun-bedroom256-ct",
}


class Printed(Struct, frozen=True):
    """A number as the paper prints it, e.g. "13.0", "4e-4", "800k"."""

    text: Annotated[str, Meta(pattern=r"^\d+(\.\d+)?(e-?\d+)?k?$")]

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


class ResultRow(Struct, frozen=True, kw_only=True):
    """One row of Table 1 or 2."""

    table: int  # 1 or 2
    dataset: str  # data set, as in the CSV
    category: str  # heading under which the row is printed
    method: str  # name of the method, as printed
    nfe: Positive  # network evaluations per image
    scores: dict[Metric, Printed]  # printed cell by metric
    verified: str  # sources in which the row is printed identically


class HyperparameterRow(Struct, frozen=True, kw_only=True):
    """One row of Table 3."""

    name: str  # the hyperparameter, as printed (mu and mu0 spelled out)
    cells: dict[str, str]  # printed cell by column, without the empty ones
    verified: str  # sources in which the row is printed identically, and what the code has instead

    def value(self, column: str) -> float:
        """A cell as a number."""
        return Printed(self.cells[column]).value


def read_csv(name: str) -> list[dict[str, Any]]:
    """The rows of a CSV file of this folder, without their empty cells."""
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]


@functools.cache
def result_rows(number: int) -> tuple[ResultRow, ...]:
    """Table 1 (CIFAR-10) or 2 (ImageNet-64, LSUN) of the paper."""
    rows = read_csv(f"table{number}.csv")
    for row in rows:
        row["table"] = number
        row["scores"] = {metric: {"text": row.pop(metric)} for metric in METRICS if metric in row}
    return convert(tuple[ResultRow, ...], rows, f"table{number}.csv", strict=False)


@functools.cache
def hyperparameters() -> tuple[HyperparameterRow, ...]:
    """Table 3 of the paper."""
    rows = [
        {"name": row.pop("hyperparameter"), "verified": row.pop("verified"), "cells": row}
        for row in read_csv("table3.csv")
    ]
    return convert(tuple[HyperparameterRow, ...], rows, "table3.csv")
