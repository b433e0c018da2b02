"""Two records side by side."""

import json
import math

import pytest
from records_of import altered, demo_record, sha256_of

from cmrepro.paper import claim
from cmrepro.records import write_record
from cmrepro.report.comparability import Agreement
from cmrepro.report.compare import compare
from cmrepro.report.verdicts import ordering_verdict

BASE = demo_record("cd", 2, 0, 100.0)


def test_a_record_does_not_differ_from_itself():
    compared = compare(BASE, BASE)
    assert (compared.settings, compared.agreement) == ([], Agreement({}, {}))
    assert compared.divergence.startswith("The runs have the same noise, images, features;")
    assert {row["difference"] for row in compared.scores} == {0.0}
    for factor, words in ((1 + 1e-6, "same within rounding"), (1.01, "difference of their")):
        scores = {metric: factor * value for metric, value in BASE.scores.items()}
        assert words in compare(BASE, altered(BASE, {"scores": scores})).divergence


@pytest.mark.parametrize("stage", ["noise", "labels", "images", "features"])
def test_the_first_stage_at_which_two_runs_part(stage):
    base = altered(BASE, {"hashes.labels": sha256_of("labels")})
    order = ("noise", "labels", "images", "features")
    later = {f"hashes.{s}": sha256_of(f"other {s}") for s in order[order.index(stage) :]}
    assert compare(base, altered(base, later)).divergence.startswith(
        f"The runs diverge at the {stage}; "
    )


def with_spread(seed, fid, half, interval):
    intervals = {"fid": [fid - half, fid + half], "is": interval}
    return demo_record("cd", 1, seed, fid, uncertainty={"intervals": intervals})


def test_intervals_of_differences():
    first, second = with_spread(0, 100.0, 3.0, [2.0, 4.0]), with_spread(1, 90.0, 4.0, [3.0, 9.0])
    rows = {row["what"]: row for row in compare(first, second).scores}
    assert rows["fid"]["difference"] == -10.0
    # Variances of independent sets add up: 3 and 4 make 5.
    assert rows["fid"]["interval"] == pytest.approx(5)
    assert rows["is"]["interval"] == pytest.approx(math.hypot(1, 3))
    assert rows["kid"]["interval"] is None
    rows = {row["what"]: row for row in compare(first, demo_record("cd", 1, 2, 90.0)).scores}
    assert rows["fid"]["interval"] is None  # known of one side only


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reference.split": "x"}, "reference cifar10-jpeg-train in the first, cifar10-jpeg-x"),
        ({"reference.sha256": "a" * 64}, "reference_sha256 "),
        ({"sampler.times": [80.0, 20.0]}, "times 80 → 0.8 expected, 80 → 20 in the second"),
        ({"checkpoint": None, "sampler": None}, "not known: dataset (in the second)"),
    ],
)
def test_reasons_why_scores_cannot_be_compared(changes, reason):
    [found] = compare(BASE, altered(BASE, changes)).agreement.different.values()
    assert found.startswith(reason)
    # Another seed and number of evaluations of one model.
    assert not compare(BASE, demo_record("cd", 1, 1, 90.0)).agreement.different


def test_a_pair_has_one_answer_here_and_in_its_verdict():
    cd, ct = (
        [demo_record(m, 1, s, fid + s**2) for s in (0, 1)] for m, fid in (("cd", 9), ("ct", 99))
    )
    claimed = claim("song2023/ordering/cd-better-than-ct-nfe1/cifar10")
    assert ordering_verdict(claimed, cd + ct).answer == "holds at demo scale"
    agreement = compare(cd[0], ct[0]).agreement
    assert not agreement.different and "trained otherwise" in agreement.notes[0]
    other = [altered(record, {"checkpoint.network": "other"}) for record in ct]
    assert ordering_verdict(claimed, cd + other).answer == "not comparable"
    assert [*compare(cd[0], other[0]).agreement.different] == ["network"]


def test_the_command(run, tmp_path):
    records = [demo_record("cd", nfe, 0, fid) for nfe, fid in ((1, 100.0), (2, 90.0))]
    paths = [write_record(record, tmp_path) for record in records]
    code, out, err = run("compare", *paths, "--format", "json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert code == 0
    assert (rows["nfe"]["second"], rows["fid"]["difference"]) == (2, -10.0)
    table = run("compare", *paths)[1]
    for conclusion in ("The runs diverge at the noise", "The scores are comparable."):
        assert conclusion in err and conclusion in table
