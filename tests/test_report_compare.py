"""Two records side by side."""

import json
import math
import sys

import pytest
from records_of import demo_record, sha256_of
from scipy import stats

from cmrepro.cli import main as cli
from cmrepro.records3 import write_record
from cmrepro.report.compare import compare

BASE = demo_record("cd", 1, 0, 100.0)


def changed(**changes):
    return demo_record("cd", 1, 0, 100.0, **changes)


def test_a_record_does_not_differ_from_itself():
    compared = compare(BASE, BASE)
    assert compared.settings == compared.reasons == []
    assert compared.parted.startswith("The runs have the same noise, images, features;")
    assert {row["difference"] for row in compared.scores} == {0.0}


def test_nested_settings_are_named_with_both_values():
    sampler = BASE.sampler | {"to_uint8": "truncate"}
    origin = {k: v for k, v in BASE.checkpoint["origin"].items() if k != "cpu"}
    checkpoint = BASE.checkpoint | {"origin": origin}
    compared = compare(BASE, changed(sampler=sampler, checkpoint=checkpoint))
    assert {row["what"]: (row["first"], row["second"]) for row in compared.settings} == {
        "sampler.to_uint8": ("round", "truncate"),
        "checkpoint.origin.cpu": ("some CPU", None),
    }


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1, "same within rounding (0.0001 of"), (1 + 1e-6, "same within"), (1.01, "what differs in")],
)
def test_scores_within_rounding_are_the_same(factor, words):
    scores = {metric: factor * value for metric, value in BASE.scores.items()}
    assert words in compare(BASE, changed(scores=scores)).parted


@pytest.mark.parametrize(
    ("others", "where"),
    [
        (["noise", "images", "features"], "noise: they start from other noise"),
        (["images", "features"], "images: what they start from is the same"),
        (["features"], "features: the images are the same"),
    ],
)
def test_the_first_place_where_two_runs_part(others, where):
    hashes = BASE.hashes | {key: sha256_of(f"other {key}") for key in others}
    assert compare(BASE, changed(hashes=hashes)).parted.startswith(f"The runs part at the {where}")


def test_classes_come_between_noise_and_images():
    first, second = (BASE.hashes | {"labels": sha256_of(name)} for name in "ab")
    second["images"] = sha256_of("other")
    compared = compare(changed(hashes=first), changed(hashes=second))
    assert compared.parted.startswith("The runs part at the labels: the noise is the same")


def with_spread(seed, fid, error, interval):
    uncertainty = {
        "intervals": {"is": interval},
        "fid_infinity": {"value": fid, "standard_error": error},
    }
    return demo_record("cd", 1, seed, fid, uncertainty=uncertainty)


def test_intervals_of_differences():
    first, second = with_spread(0, 100.0, 3.0, [2.0, 4.0]), with_spread(1, 90.0, 4.0, [3.0, 9.0])
    rows = {row["what"]: row for row in compare(first, second).scores}
    assert rows["fid"]["difference"] == -10.0
    # Variances of independent sets add up: 3 and 4 make 5.
    assert rows["fid"]["interval"] == pytest.approx(stats.norm.ppf(0.975) * 5)
    assert rows["is"]["interval"] == pytest.approx(math.hypot(1, 3))
    assert rows["kid"]["interval"] is None
    rows = {row["what"]: row for row in compare(first, demo_record("cd", 1, 2, 90.0)).scores}
    assert rows["fid"]["interval"] is None  # known of one side only


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_images": 50}, "the scores have different scales (num_images)"),
        (
            {"protocol": {"name": "embedded", "version": 2}},
            "the scores have different scales (protocol.version)",
        ),
        (
            {"reference": BASE.reference | {"sha256": sha256_of("other")}},
            "the scores have different scales (reference.sha256)",
        ),
        (
            {"comparable": BASE.comparable | {"images_seen": 99}},
            "images_seen differs: 320 and 99",
        ),
        (
            {"comparable": BASE.comparable | {"weights": None}},
            "weights is not known of one",
        ),
        (
            {"checkpoint": {}, "sampler": {}},
            f"only {BASE.id} says how its model was trained",
        ),
    ],
)
def test_why_scores_cannot_be_compared(changes, reason):
    assert compare(BASE, changed(**changes)).reasons == [reason]


def test_another_seed_is_comparable():
    assert compare(BASE, demo_record("cd", 1, 1, 90.0)).reasons == []


def test_the_command(tmp_path, monkeypatch, capsys):
    records = [demo_record("cd", nfe, 0, fid) for nfe, fid in ((1, 100.0), (2, 90.0))]
    paths = [str(write_record(record, tmp_path)) for record in records]
    monkeypatch.setattr(sys, "argv", ["cmrepro", "compare", *paths, "--format", "json"])
    cli.main()
    captured = capsys.readouterr()
    rows = {row["what"]: row for row in json.loads(captured.out)}
    assert rows["sampler.times"]["first"] == "[80.0]"
    assert rows["sampler.times"]["second"] == "[80.0, 0.8]"
    assert rows["fid"]["difference"] == -10.0
    assert captured.err.splitlines() == [
        "The runs part at the noise: they start from other noise: another seed, number of images "
        "or of steps, or another random generator.",
        "Intervals are unknown without --bootstrap: one set each.",
        "The scores are comparable.",
    ]
