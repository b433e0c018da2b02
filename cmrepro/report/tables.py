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
# Longer texts are wrapped in a terminal and get a column of fixed width in LaTeX.
WRAP_COLUMNS = 60
LEAST_COLUMNS = 16  # texts are wrapped no narrower
PADDING = 2  # spaces by which tabulate makes a column wider than its heading
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
    wide = [any(len(row[i]) > WRAP_COLUMNS for row in cells) for i in range(len(columns))]
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
    """A table for a terminal; no word is broken, so that ids can be copied."""
    lines = [[f"{name}{PADDING * '_'}" for name in columns], *cells]
    texts = [*zip(*lines, strict=True)]
    least = [max(map(len, " ".join(column).split(" "))) for column in texts]
    wanted = [max(map(len, column)) for column in texts]
    for limit in range(WRAP_COLUMNS, LEAST_COLUMNS, -1):
        widths = [max(a, min(b, limit)) for a, b in zip(least, wanted, strict=True)]
        if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
            break
    else:
        return _blocks(columns, cells, width or 0)
    wrap: Any = {"break_long_words": False, "break_on_hyphens": False}
    lines = [
        [textwrap.fill(x, n, **wrap) for x, n in zip(row, widths, strict=True)] for row in lines
    ]
    headers = [name[:-PADDING] for name in lines[0]]
    return tabulate(lines[1:], headers, tablefmt="simple", disable_numparse=True) + "\n"


def _blocks(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> str:
    """A block of names and values for each row, without the values that are empty."""
    label = max(map(len, columns))
    indent: Any = {"subsequent_indent": " " * (label + 2), "break_on_hyphens": False}
    blocks = [
        "".join(
            textwrap.fill(text, width, initial_indent=f"{name:{label}}  ", **indent) + "\n"
            for name, text in zip(columns, row, strict=True)
            if text
        )
        for row in cells
    ]
    return "\n".join(blocks)


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
