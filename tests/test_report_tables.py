"""Rendering: printed strings survive every format, and other programs read the result."""

import csv
import io
import json
import pathlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_of import demo_record

from cmrepro.paper import claims
from cmrepro.records import FOLDER, write_record
from cmrepro.report.results import claims_rows
from cmrepro.report.tables import FORMATS, deviations_rows, render

AWKWARD = "50% of a_b & c | {d} #1 $x^2$ ~ \\e <f> *g* `h`"
Rows = list[dict[str, Any]]


@pytest.fixture
def rows() -> Rows:
    return [
        {"learning_rate": "4e-4", "fid": 0.1 + 0.2, "count": 1, "text": "7.80"},
        {"learning_rate": "1e-5", "fid": None, "text": AWKWARD},
        {"fid": 1e-7, "count": 3, "text": "two\nlines"},
    ]


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
    lines = render(rows, "md").removesuffix("\n").split("\n")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


def test_markdown_and_plain_text_keep_printed_strings(rows: Rows) -> None:
    lines = render(rows, "md").splitlines()
    assert len(lines) == len(rows) + 2
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "4e-4", "0.3", "1", "7.80", ""]
    rows[0]["text"] = "word " * 40
    text = render(rows, "table")
    assert re.search(r"^4e-4 +0\.3 +1 +word", text, re.M)
    assert max(map(len, text.splitlines())) < 140


@pytest.mark.parametrize("width", [40, 80, 120, 200, 400])
def test_a_terminal_table_is_no_wider_than_the_terminal(width: int) -> None:
    """No word is broken either, and no value is lost."""
    for rows in (claims_rows([]), deviations_rows(), [{"a": "b c " * 99, "d e f": 1.5}], []):
        if width == 40:  # where ids are longer
            rows = [{key: str(value)[:20] for key, value in row.items()} for row in rows]
        text = render(rows, "table", width)
        assert max(map(len, text.splitlines()), default=0) <= width
        values = [x for row in rows for x in row.values() if isinstance(x, str)]
        assert set(" ".join(values).split()) <= set(text.split())


def test_latex_has_rules_and_escapes(rows: Rows) -> None:
    text = render(rows, "latex")
    assert r"\toprule" in text and r"learning\_rate" in text and "7.80" in text
    for escaped in (r"50\% of a\_b \& c", r"\{d\} \#1 \$x\^{}2\$ \textasciitilde{}"):
        assert escaped in text
    assert r"\begin{tabular}{lllp{5cm}}" in render([*rows, {"text": "word " * 20}], "latex")


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_value_is_an_empty_cell(format: str, rows: Rows) -> None:
    text = render(rows, format)
    assert "nan" not in text.lower() and "None" not in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_infinity_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render([{"fid": float("inf")}], "json")


def test_claims_with_their_verdicts(run, tmp_path: pathlib.Path) -> None:
    steps, cd = "song2023/ordering/cd-2-steps-better-than-1/cifar10", "song2023/table1/cd/nfe1/fid"
    code, out, _ = run("claims", "--out", tmp_path, "--format", "json")
    rows = json.loads(out)
    assert [row["id"] for row in rows] == [claim.id for claim in claims()]
    assert {row["verdict"] for row in rows} == {"not measured"}
    for nfe, base in ((1, 100.0), (2, 90.0)):
        for seed in range(3):
            write_record(demo_record("cd", nfe, seed, base + seed * nfe), tmp_path / FOLDER)
    code, out, _ = run("claims", steps, cd, "--out", tmp_path, "--format", "json")
    found = {row["id"]: row["verdict"] for row in json.loads(out)}
    assert (code, found) == (0, {cd: "not comparable", steps: "holds at demo scale"})
    code, out, err = run("claims", f"{cd}d", "--out", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1) and cd in err
