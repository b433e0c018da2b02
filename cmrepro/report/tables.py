"""Tables as text, Markdown, CSV, JSON and LaTeX; deviations and later work as rows."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cmrepro.paper import METRICS, deviations, read_csv
from cmrepro.schema import to_builtins
from cmrepro.settings import Metric

FORMATS = ("table", "md", "csv", "json", "latex")
LABELS: dict[Metric, str] = METRICS | {"fid": "FD", "sfid": "sFD"}
LONG = 60  # longer texts get a column of fixed width in LaTeX
WRAPPED = (60, 45, 35, 27, 20, 16)  # widths of texts to try in a terminal
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*<`"})


def render(rows: Sequence[Mapping[str, Any]], format: str, width: int | None = None) -> str:
    """A table as text, ending in a newline; a missing value becomes an empty cell.

    Strings stay as they are ("4e-4" is not read as a number). Numbers are written in full as CSV
    and JSON, to six significant digits for readers. "table" is plain text, at most `width` wide:
    where the longest words leave no room, rows become blocks of names and values. "latex" needs
    booktabs.
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
    wide = [any(len(row[i]) > LONG for row in cells) for i in range(len(columns))]
    if format == "md":
        cells = [[text.translate(MARKDOWN) for text in row] for row in cells]
        columns = [name.translate(MARKDOWN) for name in columns]
    if format == "table":
        return _plain(columns, cells, width)
    style = {"md": "pipe", "latex": "latex_booktabs"}[format]
    text = tabulate(cells, headers=columns, tablefmt=style, disable_numparse=True)
    if format == "latex":  # LaTeX wraps columns of long texts
        widths = "".join("p{5cm}" if long else "l" for long in wide)
        text = text.replace(f"{{{'l' * len(columns)}}}", f"{{{widths}}}", 1)
    return text + "\n"


def _plain(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> str:
    """A table for a terminal, or blocks of names and values where it is too narrow for one."""
    for limit in WRAPPED:
        headers, *lines = ([_wrapped(text, limit) for text in row] for row in (columns, *cells))
        text = tabulate(lines, headers, "simple", disable_numparse=True)
        if width is None or max(map(len, text.splitlines()), default=0) <= width:
            return text + "\n"
    room = max(1, (width or 0) - max(map(len, columns)) - 2)
    rows = (zip(columns, row, strict=True) for row in cells)
    blocks = ([(name, _wrapped(text, room)) for name, text in row if text] for row in rows)
    style: Any = {"tablefmt": "plain", "disable_numparse": True}
    return "\n".join(tabulate(block, **style) + "\n" for block in blocks)


def _wrapped(text: str, width: int) -> str:
    """Lines of whole words, so that ids can be copied."""
    # tabulate's own wrapping fails for "1,000,000".
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


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
    return [{name: row.get(name) for name in names} for row in read_csv("later_work.csv")]
