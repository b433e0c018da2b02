"""The page: its links lead somewhere, nothing is fetched, its pictures show what they should."""

import base64
import csv
import io
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from records_of import demo_record
from report_folder import PARTS, made_up_records, make_results
from scipy import stats

from cmrepro.records3 import RunRecord, flat, write_record
from cmrepro.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Point, svg
from cmrepro.report.figures import num_images_charts, score_charts
from cmrepro.report.page import record_page
from cmrepro.report.render import write_report

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "input", "img", "link", "br"}


class Page(HTMLParser):
    """Links, ids, images and text of a page; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        fields = dict(attrs)
        assert len(fields) == len(attrs), f"an attribute of <{tag}> twice"
        self.links += [fields["href"] or ""] if "href" in fields else []
        self.images += [fields["src"] or ""] if "src" in fields else []
        self.ids += [fields["id"] or ""] if "id" in fields else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID | {"path"}, f"<{tag}/> is open in HTML"

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(out: Path) -> dict[Path, Page]:
    site = out / "results" / "site"
    return {path.resolve(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_every_link_leads_to_a_file_or_a_place_that_is_there(pages: dict[Path, Page]) -> None:
    assert len(pages) == 1 + len(made_up_records())
    for path, page in pages.items():
        assert len(set(page.ids)) == len(page.ids)
        for link in page.links:
            file, _, place = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), f"{path.name}: {link}"
            if place:
                assert place in pages[target].ids, f"{path.name}: {link}"


def test_nothing_is_fetched(out: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert all(image.startswith("data:image/") for image in page.images)
        text = path.read_text()
        assert "default-src 'none'" in text  # and the browser holds the page to it
        assert "@import" not in text and "<link" not in text and "<script src" not in text
    assert (out / "results" / "site" / "index.html").stat().st_size < 3_000_000


def test_every_table_of_the_report_is_on_the_page(out: Path, pages: dict[Path, Page]) -> None:
    [index] = [page for path, page in pages.items() if path.name == "index.html"]
    shown = " ".join(index.text.split())
    for path in (out / "results" / "tables").glob("*.csv"):
        for row in csv.DictReader(path.read_text().splitlines()):
            missing = [text for text in row.values() if " ".join(text.split()) not in shown]
            assert missing == [] or row.get("verdict") == "not measured", f"{path.name}: {row}"


def test_each_of_our_cells_leads_to_its_records(pages: dict[Path, Page]) -> None:
    [index] = [page for path, page in pages.items() if path.name == "index.html"]
    for record in made_up_records():
        # Twice in Table 1's column n or in the list of records, and on its own page.
        assert index.links.count(f"records/{record.id}.html") == 2
    first = [r.id for r in made_up_records() if r.seed == 0]
    # Model, FD, IS, precision and recall of a row lead to the first record of its group.
    assert [index.links.count(f"#{id_}") for id_ in first] == [5, 5]


def test_the_page_of_a_record_shows_every_field(out: Path, pages: dict[Path, Page]) -> None:
    for record in made_up_records():
        page = pages[(out / "results" / "site" / "records" / f"{record.id}.html").resolve()]
        nested = {name: value for name, value in vars(record).items() if isinstance(value, dict)}
        for value in flat(nested).values():
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                assert str(value) in page.text
        assert f"cmrepro redo results/records/{record.id}.json" in page.text


def test_the_page_of_a_record_says_what_a_redo_needs_and_what_its_scores_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmrepro.report.page.BUNDLED", tmp_path)
    (tmp_path / "demo-cifar10-ct.safetensors").write_bytes(
        b"ct"
    )  # of the checksum that the record has
    made_by = {"command": "cmrepro train demo-cifar10-cd"}
    provenance = demo_record("cd", 1, 0, 1.0).provenance
    noise = {"provenance": provenance | {"command": "cmrepro anchors images.zip"}}
    records = {
        "bundled": demo_record("ct", 1, 0, 100.123456789),
        "trained": demo_record("cd", 1, 0, 90.0),
        "noise": anchor("noise", 0.9, 200.0, **noise),
        "foreign": anchor("foreign", 0.8, 50.0),
    }
    records["trained"].checkpoint["origin"] |= made_by
    for record in records.values():
        write_record(record, tmp_path / "results" / "records")
    write_report(tmp_path)
    text = {
        name: (tmp_path / "results" / "site" / record_page(record)).read_text()
        for name, record in records.items()
    }
    redo = {name: f"cmrepro redo results/records/{r.id}.json" for name, r in records.items()}
    assert f"<code>{redo['bundled']}</code>" in text["bundled"]
    for name in "bundled", "noise":
        assert "--checkpoint" not in text[name] and "--samples" not in text[name]
    assert f"{redo['trained']} --checkpoint demo-cifar10-cd.safetensors" in text["trained"]
    assert made_by["command"] in text["trained"]
    assert f"{redo['foreign']} --samples FILE" in text["foreign"]
    assert '<data value="100.123456789" title="100.123456789">100.12</data>' in text["bundled"]
    for name in "bundled", "trained":
        assert f'<a href="{records["noise"].id}.html">noise</a></th></tr>' in text[name]  # last
        assert "<td>200</td>" in text[name]
    assert f'<a href="{records["noise"].id}.html">' not in text["noise"]


def test_the_page_holds_the_pixels_of_the_first_two_rows(
    out: Path, pages: dict[Path, Page]
) -> None:
    [index] = [page for path, page in pages.items() if path.name == "index.html"]
    for nfe, uri in zip((1, 2), index.images, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            shown = np.array(image)
        with Image.open(out / "results" / "samples" / f"demo-cifar10-cd_nfe{nfe}.png") as image:
            grid = np.array(image)
        np.testing.assert_array_equal(shown, grid[:128:2, ::2])  # exact: the pixels are doubled


def drawn(chart: Chart) -> tuple[ElementTree.Element, list[list[tuple[float, float]]]]:
    """The parsed SVG, and the points of each line."""
    root = ElementTree.fromstring(svg(chart))
    lines = []
    for group in root.iter(f"{SVG}g"):
        path = next(group.iter(f"{SVG}path")).attrib["d"]
        lines.append([tuple(map(float, part.split())) for part in path[1:].split("L")])
    return root, lines  # type: ignore[return-value]


@pytest.mark.parametrize("log", [False, True])
def test_a_straight_line_is_drawn_straight_within_the_plot(log: bool) -> None:
    values = [10.0**k if log else float(k) for k in range(5)]
    chart = Chart("t", "x", {"line": [Point(v, v) for v in values]}, log_x=log, log_y=log)
    _, [points] = drawn(chart)
    xs, ys = zip(*points, strict=True)
    # Equal steps, to the 0.1 pixel to which coordinates are rounded, twice.
    np.testing.assert_allclose(np.diff(xs), np.diff(xs)[0], atol=0.21)
    np.testing.assert_allclose(np.diff(ys), np.diff(ys)[0], atol=0.21)
    assert LEFT < xs[0] < xs[-1] < WIDTH - RIGHT  # padded on both sides
    assert HEIGHT - BOTTOM > ys[0] > ys[-1] > TOP


def test_an_interval_is_as_long_as_it_says() -> None:
    chart = Chart("t", "x", {"line": [Point(0, 0, 2.0), Point(1, 4)]})
    root, [[(x0, y0), (_, y1)]] = drawn(chart)
    [bar] = [
        path.attrib["d"]
        for path in root.iter(f"{SVG}path")
        if path.attrib["d"].startswith(f"M{x0:.1f} ")
        and "V" in path.attrib["d"]
        and path.attrib.get("class") == "line"
    ]
    low, high = (float(part.split()[-1]) for part in bar[1:].split("V"))
    assert low - high == pytest.approx(y0 - y1, abs=0.3)  # from -2 to 2, as far as from 0 to 4
    assert "± 2" in svg(chart)


def numbers(root: ElementTree.Element, anchor: str) -> Iterator[float]:
    for text in root.iter(f"{SVG}text"):
        if text.attrib.get("text-anchor") == anchor and "s" not in (text.text or "s"):
            number, thousands, _ = (text.text or "").replace(",", "").partition("k")
            yield float(number) * (1000 if thousands else 1)


@settings(deadline=None)  # other work on the machine
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5), st.booleans())
@example([1.0], True)  # a single value whose logarithm is 0
def test_axes_have_a_few_round_numbers_among_the_values(values: list[float], log: bool) -> None:
    points = [Point(float(i), value) for i, value in enumerate(values)]
    root, _ = drawn(Chart("s", "s", {"s": points}, log_y=log))
    ticks = list(numbers(root, "end"))
    assert 1 <= len(ticks) <= 6
    span = max(values) - min(values) or max(values)
    assert all(min(values) - span <= tick <= max(values) + 2 * span for tick in ticks)


def test_a_score_chart_has_the_mean_and_interval_over_seeds() -> None:
    chart = score_charts(made_up_records())["embedded-v1_fid"]
    [(label, points)] = chart.lines.items()
    assert label == "demo-cifar10-cd, 2,000 images"
    interval = stats.ttest_1samp([100.0, 102.0], 0).confidence_interval(0.95)
    assert points[0].ends == pytest.approx((interval.low, interval.high))
    assert [point.x for point in points] == [1, 2]


def anchor(name: str, precision: float, fid: float, **changes: object) -> RunRecord:
    scores = {"fid": fid, "precision": precision}
    return demo_record("cd", None, None, fid, model=name, sampler={}, scores=scores, **changes)


def test_a_score_chart_has_the_images_that_say_what_its_scale_means() -> None:
    real, noise = anchor("real", 0.7, 60.0), anchor("noise", 0.9, 200.0)
    elsewhere = anchor("elsewhere", 0.5, 80.0, protocol={"name": "embedded", "version": 2})
    other = anchor("other", 0.5, 80.0, num_images=100)
    charts = score_charts([*made_up_records(), noise, real, elsewhere, other])
    assert charts["embedded-v1_fid"].levels == [(60.0, "real"), (200.0, "noise")]
    assert charts["embedded-v1_fid"].title == "FD (lower is better)"
    assert charts["embedded-v1_is"].levels == []  # they have no IS
    # Noise before real images: such a score does not say which images are better.
    assert charts["embedded-v1_precision"].title == "precision (no order of quality)"
    assert score_charts(made_up_records())["embedded-v1_precision"].title.endswith("is better)")


@pytest.mark.parametrize(("level", "drawn_there"), [(60.0, True), (100_000.0, False)])
def test_a_level_is_drawn_where_it_leaves_the_lines_room(level: float, drawn_there: bool) -> None:
    chart = Chart("t", "x", {"line": [Point(1, 90), Point(2, 100)]}, levels=[(level, "real")])
    root, [[(_, y0), (_, y1)]] = drawn(chart)
    marks = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.attrib.get("class") == "mark"]
    heights = [float(d.split()[1].partition("H")[0]) for d in marks if d.startswith(f"M{LEFT} ")]
    assert (heights == [pytest.approx(y0 + 3 * (y0 - y1), abs=0.5)]) == drawn_there
    assert bool(heights) == drawn_there
    assert (f"real {level:,.0f}" if drawn_there else "not drawn: real 100,000") in svg(chart)


def test_texts_of_marks_and_axes_do_not_overlap() -> None:
    points = [Point(float(k), 1.0) for k in range(0, 280_000, 1000)]
    marks = [(float(k * k), str(k)) for k in range(3, 500)]
    root, _ = drawn(Chart("t", "x", {"line": points}, marks=marks, mark_name="N"))
    middles = defaultdict(list)
    for text in root.iter(f"{SVG}text"):
        if text.text != "x" and text.attrib.get("text-anchor") == "middle":
            middles[text.attrib["y"]].append((float(text.attrib["x"]), text.text or ""))
    assert len(middles) == 2  # above the frame and below it
    for row in middles.values():
        assert len(row) > 3
        for (x, text), (next_x, next_text) in pairwise(row):
            assert next_x - x > 6 * (len(text) + len(next_text)) / 2, (text, next_text)
        assert row[0][0] - 3 * len(row[0][1]) >= LEFT - 14
        assert row[-1][0] + 3 * len(row[-1][1]) <= WIDTH
    assert [text for _, text in middles[f"{HEIGHT - BOTTOM + 14:.1f}"]][1] == "50k"


def test_fid_against_the_number_of_images_has_the_interval_of_its_parts() -> None:
    [chart] = num_images_charts(made_up_records()).values()
    [points] = chart.lines.values()
    assert [point.x for point in points] == [500, 1000, 2000]
    interval = stats.ttest_1samp(PARTS["500"], 0).confidence_interval(0.95)
    assert points[0].ends == pytest.approx((interval.low, interval.high))
    # One value has no spread of its own: its standard error of 2 comes from the parts.
    assert points[-1].y == 90 and points[-1].half_width == pytest.approx(2 * 1.96, abs=1e-3)


def test_a_page_without_samples_logs_and_parts_says_so(tmp_path: Path) -> None:
    make_results(tmp_path)
    for path in (tmp_path / "results").rglob("*"):
        if path.suffix in (".png", ".jsonl") or path.stem.endswith("nfe2_embedded-v1_n2000_seed0"):
            path.unlink()
    write_report(tmp_path)
    text = Page((tmp_path / "results" / "site" / "index.html").read_text()).text
    for words in ("No sample grids", "No logs of training", "No record holds scores of parts"):
        assert words in text


def test_a_single_point_can_be_drawn() -> None:
    _, [[(x, y)]] = drawn(Chart("t", "x", {"line": [Point(0.0, 0.0)]}))
    assert math.isclose(x, (LEFT + WIDTH - RIGHT) / 2) and math.isclose(
        y, (TOP + HEIGHT - BOTTOM) / 2
    )
