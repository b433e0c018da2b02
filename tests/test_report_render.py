"""REPORT.md, tables, figures and the page follow from the records; every edit is found."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from paper_records import paper_record
from PIL import Image
from records_of import altered, demo_checkpoint, demo_record, sha256_of
from report_folder import made_up_records, make_results
from scipy import stats

from cmrepro.data.grids import write_grid
from cmrepro.records import RunRecord, write_record
from cmrepro.report import figures
from cmrepro.report.render import check_report, write_report
from cmrepro.report.results import AS_PUBLISHED, demo_rows, paper_rows, results_rows

RECORD = demo_record("cd", 2, 0, 0.0).id
INDEX = "results/site/index.html"
PAGE = f"results/site/records/{RECORD}.html"
SCORES, SAMPLES = (f"results/figures/{kind}_embedded-v1.svg" for kind in ("score", "samples"))
VOID = {"meta", "input", "img", "link", "br"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    make_results(tmp_path)
    write_report(tmp_path)
    return tmp_path


# The report and its check


def test_a_written_report_agrees_with_its_records(out: Path) -> None:
    assert check_report(out) == ([], "")
    report = (out / "REPORT.md").read_text()
    assert "91.00 ± 12.71" in report  # t(0.975, 1) = 12.706 times the standard error 1
    title = "Consistency Models at demo scale: 1 ordering tested, 0 of 44 printed scores measured"
    assert report.splitlines()[0] == f"# {title}"
    assert "30 orderings: 1 holds at demo scale, 29 not measured." in report
    assert report.index("\n| CD: 2 steps are better than 1") < report.index("![The first images")
    cells = re.findall(r"(?<=\| )[^|\n]+(?= \|)", report)
    assert len(cells) > 20 and max(map(len, map(str.strip, cells))) < 60
    images = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert images and all((out / image).is_file() for image in images)


def test_the_readme_has_the_title_of_the_committed_report() -> None:
    root = Path(__file__).parents[1]
    title = (root / "REPORT.md").read_text().partition("\n")[0]
    assert f"[{title.removeprefix('# ')}](REPORT.md)" in (root / "README.md").read_text()


@pytest.mark.parametrize("name", ["REPORT.md", SCORES])
def test_one_changed_digit_of_the_report_or_one_byte_of_a_record_is_found(
    written: Path, name: str
) -> None:
    path = written / name
    text = path.read_text()
    place = [match.start() for match in re.finditer(r"\d", text)][-1]
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert check_report(written) == ([f"{name} differs from the records"], "")
    path.write_text(text)
    record = written / "results" / "records" / f"{RECORD}.json"
    record.write_text(record.read_text() + "\n")  # nothing shown but its checksum changes
    assert check_report(written)[0] == [f"{PAGE} differs from the records"]


def test_figures_of_another_matplotlib_are_not_compared(written: Path) -> None:
    path, pixels = written / SCORES, written / SAMPLES
    other = path.read_text().replace(f"Matplotlib v{matplotlib.__version__}", "Matplotlib v1.2.3")
    path.write_text(other)
    # Another zlib compresses the same pixels to other bytes.
    pixels.write_text(pixels.read_text().replace("base64,", "base64,AAAA", 1))
    problems, remark = check_report(written)
    assert problems == [] and remark.endswith("are not compared: 1")


def test_missing_and_surplus_files_are_found(written: Path) -> None:
    (written / "results/tables/table1.csv").unlink()
    (written / "results/records" / f"{RECORD}.json").unlink()
    (written / "results/training/demo-cifar10-cd.jsonl").unlink()
    Figure().savefig(foreign := written / "results/figures/training_mine.svg")
    problems = check_report(written)[0]
    assert "results/tables/table1.csv is missing" in problems
    for name in (surplus := (PAGE, "results/figures/training_demo-cifar10-cd.svg")):
        assert f"{name} has no record or training log" in problems
    write_report(written)
    assert not any((written / name).exists() for name in surplus) and foreign.exists()
    assert check_report(written) == ([], "")


def test_the_same_bytes_in_another_process(out: Path) -> None:
    """Sets and dictionaries have another order there."""
    environment = os.environ | {"PYTHONHASHSEED": "4321", "LC_ALL": "C"}
    command = [sys.executable, "-m", "cmrepro", "report", "--check", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_input_is_one_line(run, tmp_path: Path) -> None:
    code, _, err = run("report", "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1) and "no records in" in err
    make_results(tmp_path)
    log = tmp_path / "results/training/demo-cifar10-cd.jsonl"
    for line in ("no JSON", '{"images": 64, "train_loss": 1}', "[64]"):
        log.write_text(f"{line}\n" + log.read_text())
        code, _, err = run("report", "--out", tmp_path)
        assert (code, err.count("\n")) == (2, 1) and str(log) in err


def test_real_images_stand_beside_the_samples(run, written: Path) -> None:
    picture, grid = written / SAMPLES, '<img src="../samples/real.png"'
    assert "real images" not in picture.read_text()
    assert run("report", "--real", "synthetic", "--out", written)[0] == 0
    assert "real images" in picture.read_text() and grid in (written / INDEX).read_text()
    assert check_report(written) == ([], "")


# The page


class Page(HTMLParser):
    """Links, ids, images and text of a page; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open += [] if tag in VOID else [tag]
        fields = dict(attrs)
        self.links += [fields[key] or "" for key in ("href", "src") if key in fields]
        self.ids += [fields["id"] or ""] if "id" in fields else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def pages(out: Path) -> dict[Path, Page]:
    site = out / "results" / "site"
    return {path.resolve(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_every_link_leads_to_a_file_or_an_element(pages: dict[Path, Page]) -> None:
    assert len(pages) == 1 + len(made_up_records())
    for path, page in pages.items():
        assert len(set(page.ids)) == len(page.ids)
        for link in page.links:
            file, _, place = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path.name}: {link}"
            assert not place or place in pages[target].ids, f"{path.name}: {link}"


def test_a_records_page_shows_its_fields_and_how_to_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmrepro.report.render.BUNDLED", tmp_path)
    (tmp_path / "demo-cifar10-ct.safetensors").write_bytes(b"ct")  # has the record's checksum
    records = {
        "bundled": demo_record("ct", 1, 0, 100.123456789),
        "trained": made_up_records()[2],
        "foreign": demo_record("cd", None, None, 50.0, model="foreign"),
    }
    for record in records.values():
        write_record(record, tmp_path / "results" / "records")
    write_report(tmp_path)
    site = tmp_path / "results" / "site" / "records"
    text = {name: (site / f"{r.id}.html").read_text() for name, r in records.items()}
    redo = {name: f"cmrepro redo results/records/{r.id}.json" for name, r in records.items()}
    assert f"<code>{redo['bundled']}</code>" in text["bundled"]
    assert f"{redo['trained']} --checkpoint demo-cifar10-cd.safetensors" in text["trained"]
    assert f"{redo['foreign']} --samples FILE" in text["foreign"]
    assert '<data value="100.123456789" title="100.123456789">100.12</data>' in text["bundled"]
    assert f'<a href="{records["foreign"].id}.html">foreign</a>' in text["bundled"]
    assert records["trained"].hashes.images in text["trained"]


def test_own_models_stand_beside_the_papers_rows_with_grid_and_curve(tmp_path: Path) -> None:
    elsewhere = {"checkpoint": None, "sampler": None, "model": "my-net"}
    for seed in range(2):
        own = altered(demo_record("cd", 1, seed, 50.0 + 2 * seed), elsewhere)
        write_record(own, tmp_path / "results" / "records")
    write_grid(tmp_path / "results/samples/my-net_nfe1.png", np.zeros((1, 8, 8, 3), np.uint8))
    log = tmp_path / "results/training/my-net.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps({"images": 32, "loss": 0.5}) + "\n{")  # and a torn line
    write_report(tmp_path)
    report = (tmp_path / "REPORT.md").read_text()
    section = report.partition("## Your models")[2].partition("\n## ")[0]
    [row] = re.findall(r"^\| my-net .*", section, re.M)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["my-net", "1"] and "51.00 ± 12.71" in cells and "2 x 2,000" in cells
    assert "CD 3.55, CT 8.70" in cells and "not comparable" in cells
    assert "protocol cm-cifar10-v1 in the paper, embedded-v1 here" in section
    assert "(results/samples/my-net_nfe1.png)" in report
    index = Page((tmp_path / INDEX).read_text())
    assert "yours" in index.ids and "../figures/training_my-net.svg" in index.links


# Rows


def test_records_of_other_settings_are_other_rows() -> None:
    records = [demo_record("cd", 2, seed, 100.0 + 2 * seed) for seed in (0, 1)]
    [row] = results_rows(records)
    assert (row["seeds"], row["FD"]) == (2, "101.0 ± 12.7") and "settings" not in row
    # One sample set has its own intervals (`--intervals`): of IS, and of FD by extrapolation.
    [row] = results_rows(made_up_records()[2:3])
    assert (row["FD"], row["IS"], row["KID"]) == ("90.00 ± 3.92", "3.00 ± 0.50", "0.5000")
    changes = (
        {"sampler.times": [80.0, 0.5]},
        {"sampler.to_uint8": "truncate"},
        {"reference.sha256": sha256_of("other")},
        {"checkpoint.sha256": sha256_of("other")},
    )
    for change in changes:
        rows = results_rows([records[0], altered(records[1], change)])
        assert [row["seeds"] for row in rows] == [1, 1]
        assert len({row["settings"] for row in rows}) == 2


def test_table_1_has_every_printed_row_with_ours_beside_it() -> None:
    claimed = [f"song2023/table1/cd/nfe{nfe}/fid" for nfe in (1, 2)]
    records = [paper_record(claimed[0], seed, 100 + 2 * seed) for seed in (0, 1)]
    records += [paper_record(claimed[1], 0, 90)]
    shown = {"model": "edm", "nfe": 35, "checkpoint.training.stands_for": "cifar10-edm"}
    shown |= {"checkpoint.training.distance": None}
    records += [paper_record(claimed[0], 0, 2, shown | {"checkpoint.recipe": None})]
    elsewhere = {"nfe": None, "seed": None, "sampler": None, "checkpoint": None}
    anchors = [("noise", 300.0), ("real", 5.0)]
    records += [altered(records[0], elsewhere | {"model": m, "scores.fid": x}) for m, x in anchors]
    records += [demo_record("ct", 1, 0, 9), demo_record("ct", None, None, 7, model="of the demo")]
    *rows, real, noise = [row.cells for row in paper_rows(1, records)]
    assert len(rows) == 36
    assert (real["ours"], real["our FD"]) == ("real", "5.00") and noise["ours"] == "noise"
    cd = [row for row in rows if row["method"] == "CD"]
    assert [row["FID"] for row in cd] == ["3.55", "2.93"]
    assert [row["our FD"] for row in cd] == ["101.0 ± 12.7", "90.00"]
    assert [row["verdict"] for row in cd] == ["not reproduced", "inconclusive"]
    others = {row["method"]: row["ours"] for row in rows if row["method"] != "CD"}
    assert [others.pop(x) for x in ("CT", "PD", "EDM")] == ["not measured", "not measured", "edm"]
    assert set(others.values()) == {AS_PUBLISHED}
    assert [row["model"] for row in demo_rows(records)] == ["demo-cifar10-ct", "of the demo"]


# Figures


def test_a_score_figure_has_means_intervals_anchors_and_the_teacher() -> None:
    anchors = {"real": 6.0, "noise": 200.0}
    records = [demo_record("cd", None, None, fid, model=name) for name, fid in anchors.items()]
    other = altered(records[0], {"model": "elsewhere", "num_images": 100})
    teacher = demo_record("edm", 35, 0, 50.0)
    [ax] = figures.score_figure([*made_up_records(), teacher, *records, other]).axes
    edm, cd = ax.containers
    interval = stats.ttest_1samp([100.0, 102.0], 0).confidence_interval(0.95)
    assert cd.lines[0].get_xydata().tolist() == [[1, 101], [2, 91]]
    assert edm.lines[0].get_xydata().tolist() == [[35, 50]]
    np.testing.assert_allclose(cd.lines[2][0].get_segments()[0][:, 1], interval)
    assert [text.get_text() for text in ax.texts] == ["real 6", "noise 200"]


def test_trends_join_models_that_differ_in_n_or_in_images_seen_alone() -> None:
    def trained(fid: float, num_scales: int | None, steps: int = 10, **other: Any) -> RunRecord:
        made = demo_checkpoint("cd")
        schedule = {} if num_scales is None else dict.fromkeys(("s0", "s1", "mu0"))
        made["recipe"] |= {"num_scales": num_scales, "total_steps": steps} | schedule | other
        made["training"] |= {"images_seen": 32 * steps, "total_steps": steps}
        made["sha256"] = sha256_of(repr(made["recipe"]))
        return demo_record("cd", 1, 0, fid, checkpoint=made)

    by_n = [trained(fid, n) for fid, n in ((30.0, 9), (10.0, 18), (20.0, 36))]
    by_images = [trained(fid, 18, steps, ema_rate=0.9) for fid, steps in ((40.0, 5), (5.0, 40))]
    others = [trained(1.0, None), trained(2.0, 60, solver="euler"), trained(3.0, 80, steps=20)]
    records = [*by_n, *by_images, *others]
    left, right = figures.trends_figure(records).axes
    [[line, *_]], [[images, *_]] = left.containers, right.containers
    assert line.get_xydata().tolist() == [[9, 30], [18, 10], [36, 20]]
    assert images.get_xydata().tolist() == [[160, 40], [320, 10], [1280, 5]]
    labels = [ax.get_legend().get_texts()[0].get_text() for ax in (left, right)]
    shared = "demo-cifar10-cd, 1 evaluation\nl2, lambda = 1 / c_out^2"
    assert labels == [f"{shared}, images_seen 320", f"{shared}, num_scales 18"]
    assert figures.trends_figure([*by_n[:2], *others]) is None


def test_distances_are_drawn_by_time_at_the_start_and_the_end() -> None:
    def entry(images: int, scale: float) -> dict[str, Any]:
        found = {"80.0": scale, "0.5": scale / 10}
        online = {t: 2 * x for t, x in found.items()}
        return {"images": images, "ema_distances": found, "online_distances": online}

    log = [entry(1, 1.0), {"loss": 0.5}, entry(64, 0.3), entry(128, 0.2)]
    ax, by_images = figures.distance_figure({"cd": log, "edm": [{"loss": 0.1}]}).axes
    assert by_images.lines[0].get_xydata().tolist() == [[1, 1], [64, 0.3], [128, 0.2]]
    lines = {line.get_linestyle(): line.get_xydata().tolist() for line in ax.lines}
    end = [[80, 0.2], [0.5, 0.02]]
    assert lines == {"--": [[80, 1], [0.5, 0.1]], ":": [[t, 2 * x] for t, x in end], "-": end}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cd"]
    assert figures.distance_figure({"edm": [{"loss": 0.1}]}) is None


def test_training_seeds_of_a_model_share_a_chart_and_ablations_have_no_distances(
    tmp_path: Path,
) -> None:
    logs = tmp_path / "results/training"
    logs.mkdir(parents=True)
    for name in ("cd-l1", "cd", "cd-seed1"):
        lines = [{"images": n, "loss": 1 / n, "ema_distances": {"80": 1 / n}} for n in (1, 2)]
        lines[-1]["online_distances"] = {"80": 0.5}
        (logs / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    changes = {"model": "cd-l1", "checkpoint.recipe.distance": "l1"}
    l1 = altered(demo_record("cd", 1, 0, 9.0), changes)
    drawn = figures.figures([l1], tmp_path / "results")
    assert [*drawn["training"]] == ["training_cd", "training_cd-l1"]
    seeds, one = (text.count('<g id="line2d_') for text in drawn["training"].values())
    assert seeds == one + 1
    assert ">cd<" in (of := drawn["distances"]["distances_by_time"]) and "cd-l1" not in of


def test_the_picture_has_the_first_row_of_each_grid_best_first(out: Path) -> None:
    grids = out / "results" / "samples"
    figure = figures.samples_figure([*made_up_records(), demo_record("edm", 35, 0, 2.0)], grids)
    labels = [ax.get_title(loc="left") for ax in figure.axes]  # EDM has no grid
    assert labels == [
        "demo-cifar10-cd, 2 evaluations: FD 91.00 ± 12.71",
        "demo-cifar10-cd, 1 evaluation: FD 101.0 ± 12.7",
    ]
    grid = np.asarray(Image.open(grids / "demo-cifar10-cd_nfe2.png"))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), grid[:64])


@pytest.mark.parametrize("shape", [(3, 32, 32, 3), (70, 128, 128, 3)])
def test_grids_have_one_size_and_gaps_and_replace_no_other(tmp_path, shape, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (shape[0], 1, 1, 3), np.uint8)
    for images in (colours, 255 - colours):
        write_grid(tmp_path / "grid.png", np.broadcast_to(images, shape), overwrite=False)
    assert "grid.png is of other images and stays" in capsys.readouterr().err
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (5 * 68 - 4, 12 * 68 - 4, 4)
    assert (grid[:64, 68:132, :3] == colours[1]).all() and (grid[:, 64:68, 3] == 0).all()
