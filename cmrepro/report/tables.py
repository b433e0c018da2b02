"""Tables as text, Markdown, CSV, JSON and LaTeX; claims and deviations as data frames."""

import json
import textwrap
from typing import Literal, get_args

import pandas as pd

from cmrepro.names import unknown
from cmrepro.paper import AbsoluteClaim, Claim, claims, deviations, metrics

Format = Literal["table", "md", "csv", "json", "latex"]

# Texts longer than this are wrapped in a terminal and get a column of fixed width in LaTeX.
# No claim's id is longer, so that ids can be copied.
WRAP_COLUMNS = 60
LATEX_WIDTH = "5cm"

MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*<`"} | {"\n": " "})
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\n": " ",
    }
)


def _text(value: object) -> str:
    """A cell as text: strings as they are, what is missing as nothing."""
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]


def _latex(cells: pd.DataFrame, muted: "pd.Series[bool]") -> str:
    """A booktabs tabular; columns with long texts are wrapped by LaTeX, muted rows are grey."""
    cells = cells.map(lambda text: text.translate(LATEX)).rename(
        columns=lambda name: str(name).translate(LATEX)
    )
    cells[muted] = cells[muted].map(lambda text: text and f"\\textcolor{{gray}}{{{text}}}")
    is_long = [
        bool((cells.iloc[:, i].str.len() > WRAP_COLUMNS).any()) for i in range(cells.shape[1])
    ]
    column_format = "".join(f"p{{{LATEX_WIDTH}}}" if long else "l" for long in is_long)
    return cells.to_latex(index=False, escape=False, column_format=column_format)


def render(frame: pd.DataFrame, format: Format, muted: "pd.Series[bool] | None" = None) -> str:
    """A data frame as text, without its index; what is missing becomes an empty cell.

    Strings stay as they are ("4e-4" is not read as a number); numbers are written in full.

    Args:
        frame: Cells are strings, numbers, booleans or missing.
        format: "table" (plain text), "md" (Markdown with pipes), "csv", "json" (a list of
            objects, null for what is missing) or "latex" (needs the LaTeX packages booktabs and,
            for muted rows, xcolor).
        muted: Rows to set back: grey in LaTeX, in italics in Markdown, like others elsewhere.

    Returns:
        The text, with a line break at its end.

    Raises:
        ValueError: Unknown format; a number that JSON does not have (infinity).
    """
    if format not in get_args(Format):
        raise ValueError(unknown("format", format, get_args(Format)))
    if format == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if format == "json":
        values = frame.astype(object).where(frame.notna(), None)
        records = values.to_dict(orient="records")
        return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    cells = frame.map(_text).astype(object)
    if muted is None:
        muted = pd.Series(False, index=frame.index)
    if format == "latex":
        return _latex(cells, muted)
    if format == "md":
        cells = cells.map(lambda text: text.translate(MARKDOWN))
        cells[muted] = cells[muted].map(lambda text: text and f"*{text}*")
        cells.columns = [str(name).translate(MARKDOWN) for name in frame.columns]
        return cells.to_markdown(index=False, disable_numparse=True) + "\n"
    cells = cells.map(
        lambda text: textwrap.fill(
            text, WRAP_COLUMNS, break_long_words=False, break_on_hyphens=False
        )
    )
    return cells.to_markdown(index=False, disable_numparse=True, tablefmt="simple") + "\n"


def _claim_row(claim: Claim) -> dict[str, object]:
    if isinstance(claim, AbsoluteClaim):
        setting, steps = claim.setting, claim.setting.steps
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
        "steps": setting.steps,
        "protocol": setting.protocol,
        "metric": setting.metric,
        "num_images": claim.num_images,
        "where": claim.where,
        **own,
    }


def claims_frame() -> pd.DataFrame:
    """Every claim of the paper, one row each.

    Returns:
        Columns id, kind, statement, where, recipe, steps, protocol, metric, num_images; for
        absolute claims published (the printed cell) and margin; for orderings better and worse
        (recipe and steps then are those of the side that wins).
    """
    columns = (
        "id kind statement published margin better worse "
        "recipe steps protocol metric num_images where"
    )
    return pd.DataFrame([_claim_row(claim) for claim in claims()], columns=columns.split())


def deviations_frame() -> pd.DataFrame:
    """The deviation ledger, one row each; the columns are the fields of `paper.Deviation`.

    Returns:
        Lists (sources, fields, recipes, claims) are joined with commas; `row` is missing for
        context entries.
    """
    rows = [
        {
            name: (", ".join(value) if isinstance(value, tuple) else value) or None
            for name, value in vars(deviation).items()
        }
        for deviation in deviations()
    ]
    return pd.DataFrame(rows).astype({"row": "Int64"})
