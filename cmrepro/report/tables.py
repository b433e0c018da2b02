"""Tables as text, Markdown, CSV, JSON and LaTeX; deviations and later work as rows."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cmrepro.paper import deviations, later_work
from cmrepro.schema import to_builtins
from cmrepro.settings import METRICS, Metric

FORMATS = ("table", "md", "csv", "json", "latex")
LABELS: dict[Metric, str] = {metric: metric for metric in METRICS}
LABELS |= {"fid": "FD", "sfid": "sFD", "is": "IS", "kid": "KID"}
# Longer texts are wrapped in a terminal and get a column of fixed width in LaTeX. No claim's id is
# longer, so that ids can be copied.
WRAP_COLUMNS = 60
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*<`"})


def render(rows: Sequence[Mapping[str, Any]], format: str) -> str:
    """A table as text, ending in a newline; a missing value becomes an empty cell.

    Strings stay as they are ("4e-4" is not read as a number). Numbers are written in full as CSV
    and JSON, to six significant digits for readers. "table" is plain text; "latex" needs booktabs.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if format == "json":
        whole = [{name: row.get(name) for name in columns} for row in rows]
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format == "csv":
        writer = csv.DictWriter(buffer := io.StringIO(), columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()
    cells = [[_line(row.get(name)) for name in columns] for row in rows]
    wide = [any(len(row[i]) > WRAP_COLUMNS for row in cells) for i in range(len(columns))]
    if format == "md":
        cells = [[text.translate(MARKDOWN) for text in row] for row in cells]
        columns = [name.translate(MARKDOWN) for name in columns]
    if format == "table":
        wrap: Any = {"break_long_words": False, "break_on_hyphens": False}
        cells = [[textwrap.fill(text, WRAP_COLUMNS, **wrap) for text in row] for row in cells]
    style = {"md": "pipe", "table": "simple", "latex": "latex_booktabs"}[format]
    text = tabulate(cells, headers=columns, tablefmt=style, disable_numparse=True)
    if format == "latex":  # LaTeX wraps columns of long texts
        widths = "".join("p{5cm}" if long else "l" for long in wide)
        text = text.replace(f"{{{'l' * len(columns)}}}", f"{{{widths}}}", 1)
    return text + "\n"


def _line(value: object) -> str:
    """A cell in one line."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines())


def deviations_rows() -> list[dict[str, Any]]:
    """The deviation ledger: the fields of `paper.Deviation`, tuples joined with commas."""
    rows: list[dict[str, Any]] = [to_builtins(deviation) for deviation in deviations()]
    for row in rows:
        for key, value in row.items():
            row[key] = (", ".join(value) if isinstance(value, list | tuple) else value) or None
    return rows


def later_work_rows() -> list[dict[str, Any]]:
    """Results of later few-step models, for context: other training, other protocols."""
    names = ("dataset", "method", "nfe", "fid", "images_seen", "paper", "arxiv", "verified")
    return [{n: getattr(row, n) for n in names} | {"fid": str(row.fid)} for row in later_work()]
