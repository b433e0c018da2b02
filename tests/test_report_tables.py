"""Rendering: printed strings survive every format, and other programs read the result."""

import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cmrepro
from cmrepro.report.tables import FORMATS, claims_rows, deviations_rows, render

AWKWARD = "50% of a_b & c | {d} #1 $x^2$ ~ \\e <f> *g* `h`"


Rows = list[dict[str, Any]]
COLUMNS = ["learning_rate", "fid", "count", "text"]
MISSING = [[False] * 4, [False, True, True, False], [True, False, False, False]]


@pytest.fixture
def rows() -> Rows:
    return [
        {"learning_rate": "4e-4", "fid": 0.1 + 0.2, "count": 1, "text": "7.80"},
        {"learning_rate": "1e-5", "fid": None, "text": AWKWARD},
        {"fid": 1e-7, "count": 3, "text": "two\nlines"},
    ]


def unescaped_pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_csv_loads_back_with_its_strings(rows: Rows) -> None:
    back = pd.read_csv(io.StringIO(render(rows, "csv")), dtype={"learning_rate": str, "text": str})
    assert list(back.columns) == COLUMNS
    assert back["learning_rate"][:2].tolist() == ["4e-4", "1e-5"]
    assert back["text"].tolist() == [row["text"] for row in rows]
    assert back.isna().to_numpy().tolist() == MISSING
    assert back["fid"][0] == 0.1 + 0.2  # every digit is written: exact


def test_json_loads_back_exactly(rows: Rows) -> None:
    text = render(rows, "json")
    assert json.loads(text)[0] == {
        "learning_rate": "4e-4",
        "fid": 0.1 + 0.2,
        "count": 1,
        "text": "7.80",
    }
    assert json.loads(text)[1]["fid"] is json.loads(text)[1]["count"] is None
    back = pd.read_json(io.StringIO(text), orient="records", dtype=False)
    assert back["text"].tolist() == [row["text"] for row in rows]


# A lone "\r" is not quoted by the csv module of Python 3.11.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"))


@settings(deadline=None)  # other work on the machine
@given(st.lists(st.tuples(TEXTS, TEXTS | st.floats(-1e9, 1e9)), min_size=1))
def test_any_cell_comes_back_from_csv_and_json_and_adds_no_column(
    cells: list[tuple[str, str | float]],
) -> None:
    rows: Rows = [{"a": a, "b": b} for a, b in cells]
    assert json.loads(render(rows, "json")) == rows
    [header, *lines] = csv.reader(io.StringIO(render(rows, "csv"), newline=""))
    assert header == ["a", "b"]
    assert lines == [[str(value) for value in row.values()] for row in rows]
    pipes = {unescaped_pipes(line) for line in render(rows, "md").splitlines()}
    assert pipes == {3}


def test_ids_in_json_can_be_searched_for() -> None:
    """pandas' own writer turns every / into \\/."""
    assert '"song2023/table1/cd/nfe1/fid"' in render(claims_rows(), "json")


def test_markdown_has_one_more_pipe_than_columns_in_each_line(rows: Rows) -> None:
    lines = render(rows, "md").splitlines()
    assert len(lines) == len(rows) + 2
    assert [unescaped_pipes(line) for line in lines] == [len(COLUMNS) + 1] * len(lines)
    assert lines[2].split("|")[1].strip() == "4e-4"
    assert lines[4].split("|")[1].strip() == ""


def test_plain_text_keeps_strings_and_wraps_long_ones(rows: Rows) -> None:
    rows[0]["text"] = "word " * 40
    text = render(rows, "table")
    assert re.search(r"^4e-4 +0\.3 +1 +word", text, re.M)
    assert "nan" not in text.lower() and "none" not in text.lower() and "<na>" not in text.lower()
    assert max(map(len, text.splitlines())) < 140


def test_latex_has_rules_and_escapes(rows: Rows) -> None:
    text = render(rows, "latex")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert r"learning\_rate & fid & count & text \\" in text
    assert (
        r"50\% of a\_b \& c \textbar{} \{d\} \#1 \$x\textasciicircum{}2\$ \textasciitilde{} "
        r"\textbackslash{}e \textless{}f\textgreater{} *g* `h`"
    ) in text
    assert "4e-4 & 0.3 & 1 & 7.80" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", ["claims", "deviations", "awkward"])
def test_latex_compiles(name: str, rows: Rows, tmp_path: pathlib.Path) -> None:
    table = {"claims": claims_rows, "deviations": deviations_rows}.get(name, lambda: rows)()
    body = render(table, "latex")
    (tmp_path / "t.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}" + "\n"
        rf"{body}\end{{document}}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("format", FORMATS)
def test_no_missing_words_one_line_break_at_the_end(format: str, rows: Rows) -> None:
    text = render(rows, format)
    assert "nan" not in text.lower() and "None" not in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_an_unknown_format_names_the_nearest(rows: Rows) -> None:
    with pytest.raises(ValueError, match="unknown format 'jsn': did you mean 'json'"):
        render(rows, "jsn")


def test_infinity_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render([{"fid": float("inf")}], "json")


def test_claims_frame_has_every_claim_with_its_printed_string() -> None:
    frame = cmrepro.claims().set_index("id")
    absolute = frame[frame["kind"] == "absolute"]
    assert len(absolute) == 44 and absolute[["published", "margin"]].notna().all(axis=None)
    assert frame.loc["song2023/table2/imagenet64/ct/nfe1/fid", "published"] == "13.0"
    orderings = frame[frame["kind"] == "ordering"]
    assert len(orderings) >= 6 and orderings[["better", "worse"]].notna().all(axis=None)


def test_deviations_frame_has_every_finding() -> None:
    frame = cmrepro.deviations()
    assert set(frame["row"].dropna()) == set(range(1, 33))
    first = frame.set_index("id").loc["ct-imagenet64-learning-rate"]
    assert (first["paper"], first["released"], first["follow"]) == ("8e-6", "1e-4", "both")
    # Both sides of all of them are there; what is not known is missing, not an empty string.
    assert frame[["paper", "released", "where", "action"]].notna().all(axis=None)
    assert not (frame == "").any(axis=None)


def test_muted_rows_are_grey_in_latex_and_italic_in_markdown() -> None:
    rows = [{"a": "x_1", "b": "1"}, {"a": "y", "b": ""}]
    muted = [False, True]
    assert render(rows, "md", muted).splitlines()[2:] == ["| x_1 | 1   |", "| *y* |     |"]
    assert "\\textcolor{gray}{y} &  \\\\" in render(rows, "latex", muted)
    assert "x\\_1 & 1 \\\\" in render(rows, "latex", muted)
    assert render(rows, "csv", muted) == render(rows, "csv")
