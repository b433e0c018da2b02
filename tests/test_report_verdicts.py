"""Verdicts on printed scores: error rates on simulated records, and what is not comparable."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_records import paper_record
from records_of import altered, demo_record, sha256_of
from scipy import stats

from cmrepro.paper import claim, claims
from cmrepro.report.results import (
    claims_rows,
    demo_rows,
    model_rows,
    own_table,
    paper_rows,
    record_rows,
    results_rows,
)
from cmrepro.report.verdicts import absolute_verdict
from cmrepro.schema import flat, to_builtins

CD = "song2023/table1/cd/nfe1/fid"
TWO_STEPS = "song2023/table1/cd/nfe2/fid"
CT = "song2023/table1/ct/nfe1/fid"
CASES = 300
NOISE = 0.038  # three standard errors of 300 cases at a rate of 5 %
VALUE, MARGIN = claim(CD).value, claim(CD).margin
NEAR = VALUE + np.array([-0.1, 0.0, 0.1]) * MARGIN


def verdict_on(claimed, values, changes=None, **recipe):
    records = [paper_record(claimed, s, v, changes, **recipe) for s, v in enumerate(values)]
    return absolute_verdict(claim(claimed), records)


def answers(offset, sigma, n):
    """Share of each answer in simulated sets of n seeds with a given offset of the mean."""
    draws = np.random.default_rng(n).normal(VALUE + offset, sigma, (CASES, n))
    records = [paper_record(CD, seed, VALUE) for seed in range(n)]
    found = []
    for row in draws.tolist():
        for record, score in zip(records, row, strict=True):
            record.scores["fid"] = score
        found.append(absolute_verdict(claim(CD), records).answer)
    return {answer: found.count(answer) / CASES for answer in set(found)}


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("edges", [-1.0, 1.5])
def test_a_mean_outside_the_margin_is_rarely_reproduced(n, edges):
    assert answers(edges * MARGIN, 0.2 * MARGIN, n).get("reproduced", 0) <= 0.05 + NOISE


@pytest.mark.parametrize("n", [3, 10])
def test_a_mean_equal_to_the_claim_is_rarely_not_reproduced(n):
    found = answers(0.0, 5 * MARGIN, n)  # where the margin hardly protects
    assert found.get("not reproduced", 0) <= 0.05 + NOISE
    assert found["inconclusive"] > 0.9


def test_the_three_answers():
    near = verdict_on(CD, NEAR)
    assert near.answer == "reproduced"
    half = stats.t.ppf(0.95, 2) * 0.1 * MARGIN / np.sqrt(3)  # two one-sided tests at 5 %
    assert f"90 % interval {VALUE - half:.4g} to {VALUE + half:.4g}, against 3.55" in near.reason
    far = verdict_on(CD, NEAR + 2 * MARGIN)
    assert far.answer == "not reproduced" and "95 % interval" in far.reason
    assert verdict_on(CD, NEAR + MARGIN).answer == "inconclusive"
    assert verdict_on(CD, [VALUE]).answer == "inconclusive"
    assert absolute_verdict(claim(CD), []).answer == "not measured"


def test_the_mean_decides_and_not_the_minimum():
    values = [VALUE, *[VALUE + factor * MARGIN for factor in (4, 4.1, 3.9) * 5]]
    assert verdict_on(CD, values).answer == "not reproduced"


# Like with like

TRAINING = "checkpoint.training."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({TRAINING + "dataset": "other"}, "dataset cifar10-train in the paper, other here"),
        ({TRAINING + "images_seen": 99}, "images_seen 409,600,000 in the paper, 99 here"),
        ({TRAINING + "ema_rate": 0.999}, "weights EMA 0.9999 in the paper, EMA 0.999 here"),
        ({"checkpoint.recipe.distance": "l2"}, "distance lpips in the paper, l2 here"),
        ({"num_images": 10_000}, "num_images 50,000 in the paper, 10,000 here"),
        ({"protocol.version": 2}, "protocol cm-cifar10-v1 in the paper, cm-cifar10-v2 here"),
        ({"reference.dataset": "jpeg"}, "reference cifar10-train in the paper, jpeg-train here"),
        ({"reference.dataset": None}, "reference cifar10-train in the paper, cifar10-jpeg-train"),
        ({"checkpoint.selection.rule": "best"}, "selection last checkpoint in the paper, best"),
        ({TRAINING + "images_seen": None}, "not known: images_seen (here)"),
        ({"sampler.to_uint8": "round"}, "to_uint8 truncate expected, round here"),
        ({"sampler.clip_denoised": False}, "clip_denoised True expected, False here"),
        ({"sampler.times": [70.0]}, "times 80 expected, 70 here"),
    ],
)
def test_a_field_that_differs_is_named_with_both_values(changes, text):
    assert verdict_on(CD, NEAR).answer == "reproduced"
    verdict = verdict_on(CD, NEAR, changes)
    assert verdict.answer == "not comparable"
    assert text in verdict.reason and ";" not in verdict.reason


# Records that count


def test_seeds_of_the_selection_are_left_out():
    selection = {"rule": "least fid", "metric": "fid", "seeds": [0, 1]}
    changes = {"checkpoint.two_step_selection": selection}
    values = claim(TWO_STEPS).value + np.array([0.0, 0.0, 0.01, 0.02])
    verdict = verdict_on(TWO_STEPS, values, changes)
    assert verdict.estimate.n == 2
    assert verdict.notes == ("without seed 0, 1, on which checkpoint or time was chosen",)
    assert verdict_on(CD, NEAR, changes).estimate.n == 3  # one step has no second time
    none = verdict_on(TWO_STEPS, values[:2], changes)
    assert (none.answer, none.reason[:15]) == ("not comparable", "no seed is left")


def test_models_that_disagree_are_inconclusive():
    other = {"model": "other", "checkpoint.sha256": sha256_of("other")}
    good = [paper_record(CD, seed, VALUE + 0.01 * seed) for seed in range(3)]
    bad = [paper_record(CD, seed, VALUE + 2 + 0.01 * seed, other) for seed in range(3)]
    verdict = absolute_verdict(claim(CD), [*good, *bad, demo_record("cd", 1, 0, 9.0)])
    assert verdict.answer == "inconclusive"
    assert [note.partition(":")[0] for note in verdict.notes] == [
        "cifar10-cd reproduced",
        "other not reproduced",
    ]


BASES = [
    demo_record("cd", 2, 0, 100.0),
    demo_record("edm", 35, None, 100.0),
    demo_record("ct", None, None, 100.0),
    *(paper_record(CT, seed, 1.0) for seed in (0, 1)),
]


def emptied(record, changes):
    """The record with these values, [] where they make no valid one."""
    try:
        return [altered(record, dict(changes))]
    except (ValueError, KeyError, TypeError):
        return []


def empty_values(record):
    """Every field that may be empty, with its empty value."""
    keys = [key.split(".") for key in flat(to_builtins(record))]
    paths = sorted({".".join(key[: n + 1]) for key in keys for n in range(len(key))})
    values = product(paths, (None, "", [], {}))
    return st.sampled_from([change for change in values if emptied(record, [change])])


DRAWN = st.one_of(*(st.tuples(st.just(r), st.lists(empty_values(r), min_size=1)) for r in BASES))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(DRAWN, min_size=1))
def test_no_valid_record_makes_verdicts_and_tables_fail(drawn):
    records = [*BASES, *(record for each in drawn for record in emptied(*each))]
    assert len(claims_rows(records)) == len(claims())
    paper_rows(1, records)
    for rows in (results_rows, record_rows, model_rows, own_table, demo_rows):
        rows(records)
