"""`cmrepro claims`: every claim with its verdict so far."""

import json

import pytest
from records_of import demo_record

from cmrepro.paper import claims
from cmrepro.records3 import FOLDER, write_record

STEPS = "song2023/ordering/cd-2-steps-better-than-1/cifar10"
CD = "song2023/table1/cd/nfe1/fid"


@pytest.fixture
def results(tmp_path):
    for nfe, base in ((1, 100.0), (2, 90.0)):
        for seed in range(3):
            write_record(demo_record("cd", nfe, seed, base + seed * nfe), tmp_path / FOLDER)
    return tmp_path


def test_claims_have_their_verdicts_so_far(run, results):
    code, out, _ = run("claims", "--out", results, "--format", "json")
    assert code == 0
    rows = {row["id"]: row for row in json.loads(out)}
    assert list(rows) == [claim.id for claim in claims()]
    assert rows[CD]["verdict"] == "not comparable"
    assert "images scored 50,000 there, 2,000 here" in rows[CD]["reason"]
    assert rows[STEPS]["verdict"] == "holds at demo scale"
    assert rows["song2023/table1/ct/nfe1/fid"]["verdict"] == "not measured"


def test_only_the_claims_that_are_asked_for(run, results):
    code, out, _ = run("claims", STEPS, CD, "--out", results, "--format", "json")
    assert code == 0
    assert [row["id"] for row in json.loads(out)] == [CD, STEPS]


def test_without_records_nothing_is_measured(run, tmp_path):
    code, out, _ = run("claims", "--out", tmp_path, "--format", "json")
    assert code == 0
    assert {row["verdict"] for row in json.loads(out)} == {"not measured"}


def test_an_unknown_claim_is_one_line_with_the_nearest(run, tmp_path):
    code, out, err = run("claims", "song2023/table1/cd/nfe1/fidd", "--out", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "unknown claim" in err and CD in err
