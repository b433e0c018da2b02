"""The report is in step with its records: every edit of either is found."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from records_of import demo_record, sha256_of
from report_folder import make_results

from cmrepro.cli.main import cli
from cmrepro.paper import TABLE3_RECIPES
from cmrepro.records3 import write_record
from cmrepro.report.figures import score_charts
from cmrepro.report.published import (
    AS_PUBLISHED,
    later_work_rows,
    ledger_rows,
    paper_rows,
    table3_cells,
)
from cmrepro.report.render import check_report, write_report
from cmrepro.training.recipes import table3

RECORD = "demo-cifar10-cd_nfe2_embedded-v1_n2000_seed0"
INDEX = "results/site/index.html"
PAGE = f"results/site/records/{RECORD}.html"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    make_results(tmp_path)
    write_report(tmp_path)
    return tmp_path


def test_a_written_report_is_in_step(written: Path) -> None:
    assert check_report(written) == []
    report = (written / "REPORT.md").read_text()
    assert "91.00 ± 12.71" in report  # t(0.975, 1) = 12.706 times the standard error 1
    assert "Orderings and ablations (22): not measured 21, holds at demo scale 1." in report
    images = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert images and all((written / image).is_file() for image in images)


@pytest.mark.parametrize(
    "name",
    [
        "REPORT.md",
        "results/tables/table1.tex",
        "results/figures/score_embedded-v1_fid.svg",
        "results/figures/training_demo-cifar10-cd.svg",
        INDEX,
        PAGE,
    ],
)
def test_one_changed_digit_is_found(written: Path, name: str) -> None:
    path = written / name
    text = path.read_text()
    places = [match.start() for match in re.finditer(r"\d", text)]
    generator = np.random.default_rng(len(text))
    place = places[generator.integers(len(places))]  # in the index also within an image
    other = str((int(text[place]) + 1) % 10)
    path.write_text(text[:place] + other + text[place + 1 :])
    assert check_report(written) == [f"{name} differs from what the records give"]


def test_an_edit_of_a_record_is_found_even_where_nothing_shown_changes(written: Path) -> None:
    path = written / "results" / "records" / f"{RECORD}.json"
    path.write_text(path.read_text() + "\n")
    assert check_report(written) == [f"{PAGE} differs from what the records give"]


def test_another_score_in_a_record_is_found_wherever_it_is_shown(written: Path) -> None:
    write_record(demo_record("cd", 2, 0, 80.0), written / "results" / "records")
    found = {problem.split()[0] for problem in check_report(written)}
    shown = {"REPORT.md", INDEX, PAGE, "results/tables/table1.csv"}
    assert shown | {"results/figures/score_embedded-v1_fid.svg"} <= found


@pytest.mark.parametrize("name", ["results/tables/table1.csv", INDEX, PAGE])
def test_a_missing_file_is_found(written: Path, name: str) -> None:
    (written / name).unlink()
    assert check_report(written) == [f"{name} is missing"]


def test_a_surplus_page_is_found_and_removed(written: Path) -> None:
    (written / "results" / "records" / f"{RECORD}.json").unlink()
    assert f"{PAGE} belongs to no record" in check_report(written)
    write_report(written)
    assert not (written / PAGE).exists()
    assert check_report(written) == []


def test_another_sample_grid_or_log_is_found(written: Path) -> None:
    grid = written / "results" / "samples" / "demo-cifar10-cd_nfe1.png"
    with Image.open(grid) as image:
        pixels = np.array(image)
    pixels[:2, :2] ^= 1  # one pixel of the first image, by one level
    Image.fromarray(pixels).save(grid)
    assert check_report(written) == [f"{INDEX} differs from what the records give"]


def test_the_same_in_another_process(written: Path) -> None:
    """Sets and dictionaries have another order there."""
    environment = os.environ | {"PYTHONHASHSEED": "4321", "LC_ALL": "C"}
    command = [sys.executable, "-m", "cmrepro", "report", "--check", "--out", str(written)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("REPORT.md and the page are in step with the ")


def failure(*arguments: str) -> str:
    """The message of the error that a command ends with."""
    result = CliRunner().invoke(cli, [*arguments])
    assert isinstance(result.exception, ValueError | OSError), result.output
    return str(result.exception)


def test_no_records_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results" / "records").mkdir(parents=True)
    message = failure("report", "--out", str(tmp_path))
    assert message.startswith("no records in") and "\n" not in message


@pytest.mark.parametrize("taken", ["results/site", "results/figures"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, taken: str) -> None:
    make_results(tmp_path)
    (tmp_path / taken).write_text("a file in the place of a folder")
    message = failure("report", "--out", str(tmp_path))
    assert f"cannot write {tmp_path / taken}" in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("training/demo-cifar10-cd.jsonl", '{"images": 1', "is not a log of training"),
        ("training/demo-cifar10-cd.jsonl", '{"images": 1, "loss": NaN}', "not finite"),
        ("samples/demo-cifar10-cd_nfe1.png", "no image", "is not an image"),
    ],
)
def test_damaged_inputs_are_one_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    make_results(tmp_path)
    (tmp_path / "results" / name).write_text(text)
    message = failure("report", "--out", str(tmp_path))
    assert words in message and name in message and "\n" not in message


def test_real_images_come_beside_the_samples(written: Path) -> None:
    assert 'class="real"' not in (written / INDEX).read_text()
    done = CliRunner().invoke(cli, ["report", "--real", "synthetic", "--out", str(written)])
    assert done.exit_code == 0, done.output
    assert 'class="real"' in (written / INDEX).read_text()
    assert check_report(written) == []


def test_table_1_has_every_printed_row_and_ours_beside_it() -> None:
    records = [
        demo_record("cd", nfe, s, f) for nfe, s, f in ((1, 0, 100), (1, 1, 102), (2, 0, 90))
    ]
    rows = [row.cells for row in paper_rows(1, records)]
    assert len(rows) == 36
    cd = [row for row in rows if row["method"] == "CD"]
    assert [row["FID"] for row in cd] == ["3.55", "2.93"]
    assert [row["our FD"] for row in cd] == ["101.0 ± 12.7", "90.00"]
    assert {row["verdict"] for row in cd} == {"not comparable"}
    ours = {str(row["method"]): row["ours"] for row in rows}
    assert ours.pop("CD") == "demo-cifar10-cd"
    assert {ours.pop("CT"), ours.pop("EDM")} == {"not measured"}
    assert set(ours.values()) == {AS_PUBLISHED}


def test_ablations_stand_beside_no_row_of_the_paper() -> None:
    family = [demo_record("cd", 1, seed, 100 + seed) for seed in (0, 1)]
    checkpoint = copy.deepcopy(family[0].checkpoint) | {"sha256": sha256_of("other")}
    checkpoint["recipe"]["distance"] = "l1"
    ablation = demo_record("cd", 1, 0, 90, model="demo-cifar10-cd-other", checkpoint=checkpoint)
    for records in (family, [*family, ablation]):
        cd = [row for row in paper_rows(1, records) if row.cells["method"] == "CD"]
        assert [row.cells["ours"] for row in cd] == ["demo-cifar10-cd", "not measured"]
        [line] = score_charts(records)["embedded-v1_fid"].lines
        assert line == "demo-cifar10-cd, 2,000 images"


def test_a_released_teacher_stands_beside_edm() -> None:
    """Its origin names the checkpoint and no recipe, as `checkpoints.convert` writes it."""
    origin = {"name": "edm-cifar10", "method": "edm", "recipe": None, "steps": None}
    checkpoint = {"sha256": "of-edm", "recipe": {}, "origin": origin}
    record = demo_record("edm", 35, 0, 2.0, model="edm-cifar10", checkpoint=checkpoint)
    [row] = [row for row in paper_rows(1, [record]) if row.cells["method"] == "EDM"]
    assert row.cells["ours"] == "edm-cifar10" and row.records == [record]
    assert row.cells["our FD"] == "2.00"


def test_table_2_later_work_and_the_ledger_are_whole() -> None:
    rows = [row.cells for row in paper_rows(2, [])]
    assert len(rows) == 34
    assert [row["precision"] for row in rows if row["method"] == "CD"][:2] == ["0.68", "0.69"]
    assert [row["ours"] for row in rows if row["method"] == "EDM"] == ["not measured"] * 3
    assert len(ledger_rows()) == 32
    later = {str(row["FID"]) for row in later_work_rows() if row["images seen"] == "179,200,000"}
    assert "2.92" in later


def test_marked_cells_of_table_3_are_those_in_which_the_recipes_differ() -> None:
    both = zip(table3("paper"), table3("released"), strict=True)
    differing = {
        (paper["hyperparameter"], TABLE3_RECIPES[column])
        for paper, released in both
        for column in TABLE3_RECIPES
        if paper[column] != released[column]
    }
    marked = {
        (name, recipe)
        for name, cells in table3_cells().items()
        for recipe, cell in cells.items()
        if cell.deviations
    }
    assert marked == differing and len(marked) > 5
