"""Tables as text, Markdown, CSV, JSON and LaTeX; claims, deviations and later work as rows."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from cmrepro.paper import AbsoluteClaim, Claim, claims, deviations, later_work, metrics
from cmrepro.schema import to_builtins, unknown
from cmrepro.settings import METRICS, Metric

FORMATS = ("table", "md", "csv", "json", "latex")
LABELS: dict[Metric, str] = dict(zip(METRICS, METRICS, strict=True)) | {
    "fid": "FD",
    "sfid": "sFD",
    "is": "IS",
    "kid": "KID",
}
AS_PUBLISHED = "as published"  # methods that this suite does not have

# Longer texts are wrapped in a terminal and get a column of fixed width in LaTeX. No claim's id is
# longer, so that ids can be copied.
WRAP_COLUMNS = 60
LATEX_WIDTH = "5cm"
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*<`"})


def render(rows: Sequence[Mapping[str, Any]], format: str) -> str:
    """A table as text, ending in a newline; a missing value becomes an empty cell.

    Strings stay as they are ("4e-4" is not read as a number). Numbers are written in full as CSV
    and JSON, to six significant digits for readers.

    Args:
        rows: Cells by column: strings, numbers, booleans, None or absent.
        format: "table" (plain text), "md" (Markdown with pipes), "csv", "json" (a list of
            objects, null for a missing value) or "latex" (needs the LaTeX package booktabs).

    Raises:
        ValueError: Unknown format; a number that JSON does not have (infinity).
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if format == "json":
        whole = [{name: row.get(name) for name in columns} for row in rows]
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    cells = [[_text(row.get(name), format) for name in columns] for row in rows]
    if format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([columns, *cells])
        return buffer.getvalue()
    if format == "md":
        cells = [[text.translate(MARKDOWN) for text in row] for row in cells]
        columns = [name.translate(MARKDOWN) for name in columns]
    if format == "table":
        cells = [["\n".join(_wrapped(text)) for text in row] for row in cells]
    style = {"md": "pipe", "table": "simple", "latex": "latex_booktabs"}[format]
    text = tabulate(cells, headers=columns, tablefmt=style, disable_numparse=True)
    if format == "latex":  # LaTeX wraps columns of long texts
        wide = [any(len(row[i]) > WRAP_COLUMNS for row in cells) for i in range(len(columns))]
        widths = "".join(f"p{{{LATEX_WIDTH}}}" if long else "l" for long in wide)
        text = text.replace(f"{{{'l' * len(columns)}}}", f"{{{widths}}}", 1)
    return text + "\n"


def _text(value: object, format: str) -> str:
    """A cell as text, in one line except for CSV."""
    if value is None:
        return ""
    if format == "csv":
        return str(value)
    return " ".join((f"{value:.6g}" if isinstance(value, float) else str(value)).splitlines())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WRAP_COLUMNS, break_long_words=False, break_on_hyphens=False)


def _claim_row(claim: Claim) -> dict[str, object]:
    if isinstance(claim, AbsoluteClaim):
        setting, label = claim.setting, metrics()[claim.setting.metric].label
        steps = f"{setting.nfe} step{'s' * (setting.nfe > 1)}"
        statement = f"{label} of {claim.method} on {claim.dataset}, {steps}"
        better, worse = None, None
        published, margin = claim.printed.text, f"{claim.margin:.2g}"
    else:
        setting, statement = claim.better, f"{claim.statement} ({claim.dataset})"
        better, worse = str(claim.better), "; ".join(map(str, claim.worse))
        published, margin = None, None
    return {
        "id": claim.id,
        "kind": claim.kind,
        "statement": statement,
        "published": published,
        "margin": margin,
        "better": better,
        "worse": worse,
        "recipe": setting.recipe,
        "nfe": setting.nfe,
        "protocol": setting.protocol,
        "metric": setting.metric,
        "num_images": claim.num_images,
        "where": claim.where,
    }


def claims_rows() -> list[dict[str, Any]]:
    """Every claim of the paper, one row each.

    Absolute claims have `published` (the printed cell) and `margin`, orderings `better` and
    `worse`; `recipe` and `nfe` of an ordering are those of the better side.
    """
    return [_claim_row(claim) for claim in claims()]


def deviations_rows() -> list[dict[str, Any]]:
    """The deviation ledger: the fields of `paper.Deviation`, tuples joined with commas."""
    return [
        {
            name: (", ".join(value) if isinstance(value, list | tuple) else value) or None
            for name, value in to_builtins(deviation).items()
        }
        for deviation in deviations()
    ]


def ledger_rows() -> list[dict[str, Any]]:
    """Deviations of the official code from the paper, in the columns that a reader needs."""
    columns = ("id", "item", "paper", "released", "action")
    return [
        {name: row[name] for name in columns}
        for row in deviations_rows()
        if row["row"] is not None
    ]


def later_work_rows() -> list[dict[str, Any]]:
    """Results of later few-step models, for context: other training, other protocols."""
    return [
        {
            "dataset": row.dataset,
            "method": row.method,
            "nfe": row.nfe,
            "FID": str(row.fid),
            "images_seen": f"{row.images_seen:,}" if row.images_seen else "",
            "paper": row.paper + (f" (arXiv {row.arxiv})" if row.arxiv else ""),
            "status": row.verified,
        }
        for row in later_work()
    ]
