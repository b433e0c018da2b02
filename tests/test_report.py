"""Intervals of means over seeds, and records by group."""

import math

import pytest
from records_of import demo_record
from scipy import stats

from cmrepro.records3 import RunRecord
from cmrepro.report.results import group, results_rows, summarise


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


def test_one_value_has_no_interval():
    summary = summarise([3.0])
    assert math.isnan(summary.half_width)
    assert str(summary) == "3.00"


def test_rows_show_every_group():
    records = two_step_records([100.0, 102.0], [90.0, 92.0])
    rows = results_rows(records)
    assert [row["nfe"] for row in rows] == [1, 2]
    assert [row["seeds"] for row in rows] == [2, 2]
    assert rows[0]["FD"] == "101.0 ± 12.7"  # t(0.975, 1) = 12.706 times the standard error 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": {"sha256": "another"}}, "different checkpoints"),
        ({"sampler": {"times": [80.0, 0.5], "to_uint8": "round"}}, "different times"),
        ({"sampler": {"times": [80.0, 0.8], "to_uint8": "truncate"}}, "different rounding"),
        ({"reference": {"name": "cifar10-test", "sha256": "other"}}, "different references"),
        ({"seed": 0, "scores": {"fid": 2.0}}, "the same seed"),
    ],
)
def test_records_that_have_no_common_mean_are_refused(change, words):
    one = demo_record("cd", 2, 0, 1.0)
    other = RunRecord(**vars(demo_record("cd", 2, 1, 1.0)) | change)
    with pytest.raises(ValueError) as refused:
        group([one, other])
    assert str(refused.value) == (
        f"a mean over records {one.id} and {other.id} means nothing: they have {words}; "
        "remove what is out of date"
    )
