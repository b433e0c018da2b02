"""Verdicts that the official files get: by records with the headers and times of the registry."""

import re
from collections import defaultdict

import pytest
from paper_records import released_records
from records_of import demo_record

from cmrepro.experiments.reproduce import load_suite
from cmrepro.paper import AbsoluteClaim, claims, result_rows
from cmrepro.records import write_record
from cmrepro.report.render import write_report
from cmrepro.report.results import counts, paper_rows
from cmrepro.report.verdicts import verdict_needs, verdicts

ABSOLUTE = [c for c in claims() if isinstance(c, AbsoluteClaim)]
PRINTED = defaultdict(dict)  # scores by recipe and NFE
for c in ABSOLUTE:
    PRINTED[c.setting.recipe, c.setting.nfe][c.setting.metric] = c.value
ABLATIONS = {"cifar10-cd-l1": 9.0, "cifar10-cd-l2": 5.0, "edm-cifar10": 2.04}  # FID, made up
CD = PRINTED["cifar10-cd", 1]


def suite_records(dataset):
    """Records of a suite at the paper's size: the printed scores after each evaluation."""
    suite, records = load_suite(dataset, "paper"), []
    for name, steps in suite.checkpoints.items():
        if name in ABLATIONS:
            records += released_records(name, steps, {"fid": ABLATIONS[name]}, suite.seeds)
            continue
        for stage in range(1, steps + 1):
            scores = PRINTED[name.removesuffix("-lpips"), stage]
            records += released_records(name, stage, scores, suite.seeds)
    return records


@pytest.fixture(scope="module")
def records():
    datasets = ("cifar10", "imagenet64", "lsun-bedroom", "lsun-cat")
    return [record for dataset in datasets for record in suite_records(dataset)]


def test_the_suites_decide_every_printed_score_and_all_orderings_of_released_models(records):
    decided = verdicts(records)
    answers = {"absolute": {"reproduced": 44}, "ordering": {"reproduced": 19, "not measured": 11}}
    assert counts(decided) == answers
    # Those need models that were not released: PD, another solver, other N, fixed N and mu.
    reasons = [v.reason for v in decided.values() if v.answer == "not measured"]
    fields = [re.findall(r"(\w+) = ", reason)[:2] for reason in reasons]
    others = [["solver", "num_scales"], ["num_scales"] * 2, ["num_scales", "target_ema"]]
    assert fields == [["num_scales"]] * 8 + others
    # lambda(t) of an official file is known: 1, as in the paper.
    assert not [v.notes for v in decided.values() if "weighting" in str(v.notes)]
    [note] = [note for note in decided["song2023/table1/ct/nfe2/fid"].notes if "740" in note]
    assert note.startswith("total_steps 800,000 in the paper, 740,000 here (deviation ct-cifar10-")


def test_every_row_of_our_models_has_the_verdict_of_its_own_records(records):
    trial = released_records("cifar10-cd-lpips", 1, CD, num_images=32)
    off = CD | {"is": 9.2, "fid": CD["fid"] + 0.115}  # the latter at the edge of the margin
    again = released_records("cifar10-cd-lpips", 1, off, **{"checkpoint.sha256": "0" * 64})
    late = released_records("cifar10-cd-lpips", 1, CD, **{"sampler.times": [70.0]})
    demo = [demo_record("cd", 1, seed, CD["fid"]) for seed in range(3)]
    cells = [row.cells for n in (1, 2) for row in paper_rows(n, records) if row.records]
    assert len(cells) == sum(r.method in ("CD", "CT") for n in (1, 2) for r in result_rows(n)) + 1
    assert {x["verdict"] for x in cells} == {"reproduced", ""}  # EDM is no claim
    rows = [r.cells for r in paper_rows(1, [*records, *trial, *again, *late, *demo]) if r.records]
    found = [row["verdict"] for row in rows if (row["method"], row["nfe"]) == ("CD", 1)]
    differ = "inconclusive (FID), not reproduced (IS)"
    assert sorted(found) == [differ, "not comparable", "not comparable", "reproduced"]
    assert sum("times 70" in row["ours"] for row in rows) == 1


def test_a_run_is_told_what_its_verdicts_need():
    assert "50,000 images of each seed and at least 2" in verdict_needs("adm", 50_000, 3)
    assert verdict_needs("adm", 50_000, 3).endswith("enough")
    assert verdict_needs("adm", 64, 3).endswith("no score will be comparable with the paper's")
    assert verdict_needs("cm-cifar10", 50_000, 1).endswith("every verdict will be inconclusive")
    assert "orderings at demo scale need at least 2" in verdict_needs("embedded", 2000, 3)


@pytest.mark.parametrize("with_demo", [False, True])
def test_title_and_tables_follow_the_scale_of_the_records(with_demo, tmp_path):
    demo = [demo_record("cd", nfe, s, 90 - nfe + s) for nfe in (1, 2) for s in (0, 1)]
    for record in [*released_records("cifar10-cd-lpips", 1, CD), *(demo if with_demo else [])]:
        write_record(record, tmp_path / "results/records")
    write_report(tmp_path)
    report = (tmp_path / "REPORT.md").read_text()
    title = "Consistency Models: 0 orderings tested, 2 of 44 printed scores measured"
    title += "; 1 ordering tested at demo scale" * with_demo
    assert report.startswith(f"# {title}\n")
    assert f"<h1>{title}</h1>" in (tmp_path / "results/site/index.html").read_text()
    table = report.partition("## Table 1")[2].partition("\n## ")[0]
    assert "cifar10-cd-lpips" in table and "demo-cifar10-cd" not in table
    for text in ("demo models are small", "## Demo models", "at demo scale\n"):
        assert (text in report) == with_demo
