"""Intervals, verdicts on orderings, and a report that is in step with its records."""

import dataclasses
import math

import numpy as np
import pytest
from records_of import demo_record
from scipy import stats

from cmrepro.paper import claim
from cmrepro.records import write_record
from cmrepro.report.published import later_work_frame, ledger_frame, paper_frame
from cmrepro.report.render import FIGURE, check_report, write_report
from cmrepro.report.results import group, results_frame, summarise
from cmrepro.report.verdicts import absolute_verdict, ordering_verdict

ORDERING = claim("song2023/ordering/cd-2-steps-better-than-1/cifar10")
ABSOLUTE = claim("song2023/table1/cd/nfe1/fid")


def two_step_records(one_step, two_steps):
    return [
        demo_record("cd", nfe, seed, fid)
        for nfe, values in ((1, one_step), (2, two_steps))
        for seed, fid in enumerate(values)
    ]


def test_interval_is_that_of_a_t_test():
    values = [10.0, 12.0, 11.0, 14.0]
    summary = summarise(values)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert summary.mean - summary.half_width == pytest.approx(interval.low)
    assert summary.mean + summary.half_width == pytest.approx(interval.high)


def test_interval_covers_as_often_as_it_says():
    # 2,000 draws: the share of covered means has a standard error of 0.5 points.
    generator = np.random.default_rng(0)
    hits = sum(
        abs(s.mean - 5) <= s.half_width
        for s in (summarise(list(generator.normal(5, 2, 3))) for _ in range(2000))
    )
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_one_value_has_no_interval():
    summary = summarise([3.0])
    assert math.isnan(summary.half_width)
    assert str(summary) == "3.00"


@pytest.mark.parametrize(
    ("one_step", "two_steps", "answer"),
    [
        ([100, 101, 102], [90, 91, 92], "holds at demo scale"),
        ([90, 91, 92], [100, 101, 102], "does not hold at demo scale"),
        ([100, 90, 110], [95, 96, 97], "inconclusive"),
        ([100], [90], "inconclusive"),
        ([], [90, 91], "not measured"),
    ],
)
def test_ordering(one_step, two_steps, answer):
    assert ordering_verdict(ORDERING, two_step_records(one_step, two_steps)).answer == answer


def test_ordering_is_paired_over_seeds():
    # The seeds differ by far more than the steps do: only pairs show the difference.
    records = two_step_records([100, 200, 300], [99, 199.1, 298.9])
    assert ordering_verdict(ORDERING, records).answer == "holds at demo scale"


def test_demo_scores_are_not_comparable_with_printed_ones():
    verdict = absolute_verdict(ABSOLUTE, [demo_record("cd", 1, 0, ABSOLUTE.value)])
    assert verdict.answer == "not comparable"
    assert "images seen 409,600,000 there, 320 here" in verdict.reason
    assert "protocol cm-cifar10 there, embedded here" in verdict.reason


@pytest.mark.parametrize(
    ("offsets", "answer"),
    [
        ([0.0, 0.01, -0.01], "reproduced"),
        ([1.0, 1.01, 0.99], "not reproduced"),
        ([0.0, 0.5, -0.5], "inconclusive"),
        ([0.0], "inconclusive"),
    ],
)
def test_absolute_verdict_of_comparable_records(offsets, answer):
    def paper_record(seed, fid):
        record = demo_record("cd", 1, seed, fid)
        recipe = record.checkpoint["recipe"] | {"name": "cifar10-cd"}
        return dataclasses.replace(
            record,
            num_images=ABSOLUTE.num_images,
            protocol={"name": "cm-cifar10", "version": ABSOLUTE.protocol_version},
            checkpoint=record.checkpoint | {"recipe": recipe},
            comparable={
                "images_seen": ABSOLUTE.images_seen,
                "global_batch": ABSOLUTE.batch_size,
            },
        )

    records = [paper_record(seed, ABSOLUTE.value + x) for seed, x in enumerate(offsets)]
    assert absolute_verdict(ABSOLUTE, records).answer == answer


def test_frames_show_every_group():
    records = two_step_records([100.0, 102.0], [90.0, 92.0])
    frame = results_frame(records)
    assert list(frame["nfe"]) == [1, 2]
    assert list(frame["seeds"]) == [2, 2]
    assert frame["FD"][0] == "101.0 ± 12.7"  # t(0.975, 1) = 12.706 times the standard error 1


def test_table_1_has_every_printed_row_and_ours_beside_it():
    table = paper_frame(1, two_step_records([100.0, 102.0], [90.0, 92.0]))
    assert len(table) == 36
    cd = table[table["method"] == "CD"]
    assert list(cd["FID"]) == ["3.55", "2.93"]
    assert list(cd["ours"]) == ["demo-cifar10-cd"] * 2
    assert list(cd["our FD"]) == ["101.0 ± 12.7", "91.00 ± 12.71"]
    assert list(cd["verdict"]) == ["not comparable"] * 2
    assert set(table[table["method"].isin(["CT", "EDM"])]["ours"]) == {"not measured"}
    others = table[~table["method"].isin(["CD", "CT", "EDM"])]
    assert set(others["ours"]) == {"as published"}


def test_table_2_later_work_and_the_ledger_are_whole():
    table = paper_frame(2, [])
    assert len(table) == 34
    assert list(table[table["method"] == "CD"]["precision"])[:2] == ["0.68", "0.69"]
    assert len(ledger_frame()) == 32
    later = later_work_frame()
    fastgen = later[later["images seen"] == "179,200,000"]
    assert "2.92" in set(fastgen["FID"])


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": {"sha256": "another"}}, {"sampler": {"times": [80.0, 0.5]}}],
)
def test_records_of_different_models_under_one_name_are_refused(change):
    records = [demo_record("cd", 2, 0, 1.0), demo_record("cd", 2, 1, 1.0, **change)]
    with pytest.raises(ValueError, match="different"):
        group(records)


@pytest.fixture
def written(tmp_path):
    for record in two_step_records([100.0, 102.0], [90.0, 92.0]):
        write_record(record, tmp_path / "results" / "records")
    write_report(tmp_path)
    return tmp_path


def test_a_written_report_is_in_step(written):
    assert check_report(written) == []
    report = (written / "REPORT.md").read_text()
    assert "holds at demo scale" in report
    assert "91.00 ± 12.71" in report


def test_one_changed_digit_is_found(written):
    path = written / "REPORT.md"
    path.write_text(path.read_text().replace("91.0", "91.1", 1))
    assert check_report(written) == ["REPORT.md differs from what the records give"]


def test_a_changed_record_is_found(written):
    write_record(demo_record("cd", 2, 0, 80.0), written / "results" / "records")
    problems = check_report(written)
    assert any(p.startswith("REPORT.md") for p in problems)
    assert any(p.startswith(str(FIGURE)) for p in problems)


def test_a_missing_table_or_figure_is_found(written):
    (written / "results" / "tables" / "table1.csv").unlink()
    (written / FIGURE).unlink()
    problems = check_report(written)
    assert problems == [
        "results/tables/table1.csv is missing",
        f"{FIGURE} does not show the records",
    ]
