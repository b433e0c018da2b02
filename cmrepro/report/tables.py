"""Tables as text, Markdown, CSV, JSON and LaTeX; claims and deviations as rows."""

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict
from tabulate import tabulate

from cmrepro.paper import AbsoluteClaim, Claim, claims, deviations, metrics
from cmrepro.schema import unknown

FORMATS = ("table", "md", "csv", "json", "latex")

# Texts longer than this are wrapped in a terminal and get a column of fixed width in LaTeX.
# No claim's id is longer, so that ids can be copied.
WRAP_COLUMNS = 60
LATEX_WIDTH = "5cm"

LINE_ENDS = dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " ")
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*<`"} | LINE_ENDS)
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
    | LINE_ENDS
)


def _text(value: object) -> str:
    """A cell as text: strings as they are, what is missing as nothing."""
    return "" if value is None else str(value)


def _read(value: object) -> str:
    """A cell for a reader: numbers to six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _latex(rows: list[list[str]], columns: list[str], muted: Sequence[bool]) -> str:
    """A booktabs tabular; columns with long texts are wrapped by LaTeX, muted rows are grey."""
    import pandas as pd

    is_long = [any(len(row[i]) > WRAP_COLUMNS for row in rows) for i in range(len(columns))]
    escaped = [[text.translate(LATEX) for text in row] for row in rows]
    shown = [
        [text and f"\\textcolor{{gray}}{{{text}}}" for text in row] if grey else row
        for row, grey in zip(escaped, muted, strict=True)
    ]
    cells = pd.DataFrame(shown, columns=[name.translate(LATEX) for name in columns])
    column_format = "".join(f"p{{{LATEX_WIDTH}}}" if long else "l" for long in is_long)
    return cells.to_latex(index=False, escape=False, column_format=column_format)


def render(
    rows: Sequence[Mapping[str, Any]], format: str, muted: Sequence[bool] | None = None
) -> str:
    """A table as text; what is missing becomes an empty cell.

    Strings stay as they are ("4e-4" is not read as a number). Numbers are written in full as CSV
    and JSON, to six significant digits for readers.
    Without pandas, unless LaTeX is asked for: its import takes a second.

    Args:
        rows: Cells by column: strings, numbers, booleans, None or not there.
        format: "table" (plain text), "md" (Markdown with pipes), "csv", "json" (a list of
            objects, null for what is missing) or "latex" (needs the LaTeX packages booktabs and,
            for muted rows, xcolor).
        muted: Rows to set back: grey in LaTeX, in italics in Markdown, like others elsewhere.

    Returns:
        The text, with a line break at its end.

    Raises:
        ValueError: Unknown format; a number that JSON does not have (infinity).
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    whole = [{name: row.get(name) for name in columns} for row in rows]
    if format == "json":
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    as_text = _text if format == "csv" else _read
    cells = [[as_text(value) for value in row.values()] for row in whole]
    muted = muted or [False] * len(rows)
    if format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([columns, *cells])
        return buffer.getvalue()
    if format == "latex":
        return _latex(cells, columns, muted)
    if format == "md":
        cells = [[text.translate(MARKDOWN) for text in row] for row in cells]
        cells = [
            [text and f"*{text}*" for text in row] if grey else row
            for row, grey in zip(cells, muted, strict=True)
        ]
        headers, style = [name.translate(MARKDOWN) for name in columns], "pipe"
    else:
        cells = [
            [
                textwrap.fill(text, WRAP_COLUMNS, break_long_words=False, break_on_hyphens=False)
                for text in row
            ]
            for row in cells
        ]
        headers, style = columns, "simple"
    return tabulate(cells, headers=headers, tablefmt=style, disable_numparse=True) + "\n"


def _claim_row(claim: Claim) -> dict[str, object]:
    if isinstance(claim, AbsoluteClaim):
        setting, steps = claim.setting, claim.setting.nfe
        label = metrics()[setting.metric].label
        statement = (
            f"{label} of {claim.method} on {claim.dataset}, {steps} step{'s' * (steps > 1)}"
        )
        own: dict[str, object] = {
            "statement": statement,
            "published": claim.printed.text,
            "margin": f"{claim.margin:.2g}",
        }
    else:
        setting = claim.better
        own = {
            "statement": f"{claim.statement} ({claim.dataset})",
            "better": str(claim.better),
            "worse": "; ".join(str(side) for side in claim.worse),
        }
    return {
        "id": claim.id,
        "kind": claim.kind,
        "recipe": setting.recipe,
        "steps": setting.nfe,
        "protocol": setting.protocol,
        "metric": setting.metric,
        "num_images": claim.num_images,
        "where": claim.where,
        **own,
    }


CLAIM_COLUMNS = (
    "id kind statement published margin better worse recipe steps protocol metric num_images where"
)


def claims_rows() -> list[dict[str, Any]]:
    """Every claim of the paper, one row each.

    Returns:
        Columns id, kind, statement, where, recipe, steps, protocol, metric, num_images; for
        absolute claims published (the printed cell) and margin; for orderings better and worse
        (recipe and steps then are those of the side that wins).
    """
    rows = [_claim_row(claim) for claim in claims()]
    return [{name: row.get(name) for name in CLAIM_COLUMNS.split()} for row in rows]


def deviations_rows() -> list[dict[str, Any]]:
    """The deviation ledger, one row each; the columns are the fields of `paper.Deviation`.

    Returns:
        Lists (sources, fields, recipes, claims) are joined with commas; `row` is missing for
        context entries.
    """
    return [
        {
            name: (", ".join(value) if isinstance(value, tuple) else value) or None
            for name, value in asdict(deviation).items()
        }
        for deviation in deviations()
    ]
