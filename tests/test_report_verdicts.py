"""Verdicts on printed scores: error rates on simulated records, and what is not comparable."""

import numpy as np
import pytest
from paper_records import SELECTION, paper_record
from records_of import demo_record, sha256_of
from scipy import stats

from cmrepro.paper import AbsoluteClaim, ablated_fields, claim, claims
from cmrepro.report.verdicts import absolute_verdict, verdicts
from cmrepro.training.recipes import load_recipe

CD = "song2023/table1/cd/nfe1/fid"
TWO_STEPS = "song2023/table1/cd/nfe2/fid"
CT = "song2023/table1/ct/nfe1/fid"
CASES = 1000
# Of 1,000 cases at a rate of 5 %: three standard errors.
NOISE = 0.021


def verdict_on(claimed, values, **given):
    records = [paper_record(claimed, seed, value, **given) for seed, value in enumerate(values)]
    return absolute_verdict(claim(claimed), records)


def answers(offset, sigma, n):
    """Share of each answer in 1,000 simulated sets of n seeds with a mean off by so much."""
    paper = claim(CD)
    draws = np.random.default_rng(n).normal(paper.value + offset, sigma, (CASES, n))
    records = [paper_record(CD, seed, paper.value) for seed in range(n)]
    found = []
    for row in draws.tolist():
        for record, score in zip(records, row, strict=True):
            record.scores["fid"] = score  # the same records: to check new ones takes the time
        found.append(absolute_verdict(paper, records).answer)
    return {answer: found.count(answer) / CASES for answer in set(found)}


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("edges", [-1.0, 1.0, 1.5])
def test_a_mean_outside_the_margin_is_rarely_reproduced(n, edges):
    margin = claim(CD).margin
    assert answers(edges * margin, 0.2 * margin, n).get("reproduced", 0) <= 0.05 + NOISE


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_mean_equal_to_the_claim_is_rarely_not_reproduced(n):
    margin = claim(CD).margin
    # Where the spread is five times the margin, the margin hardly protects.
    found = answers(0.0, 5 * margin, n)
    assert found.get("not reproduced", 0) <= 0.05 + NOISE
    assert found["inconclusive"] > 0.9


def test_the_answers_come_where_they_should():
    value, margin = claim(CD).value, claim(CD).margin
    spread = np.array([-0.1, 0.0, 0.1]) * margin
    near = verdict_on(CD, value + spread)
    assert near.answer == "reproduced"
    assert "90 % interval" in near.reason and "over 3 seeds" in near.reason
    half = stats.t.ppf(0.95, 2) * 0.1 * margin / np.sqrt(3)  # two one-sided tests at 5 %
    assert f"{value - half:.4g} to {value + half:.4g}, against 3.55" in near.reason
    far = verdict_on(CD, value + 2 * margin + spread)
    assert far.answer == "not reproduced"
    assert "95 % interval" in far.reason
    assert verdict_on(CD, value + margin + spread).answer == "inconclusive"
    assert absolute_verdict(claim(CD), []).answer == "not measured"


def test_an_inconclusive_one_says_how_many_seeds_would_decide():
    value, margin = claim(CD).value, claim(CD).margin
    verdict = verdict_on(CD, value + np.array([-1.0, 0.0, 1.0]) * margin)
    assert verdict.answer == "inconclusive"
    # Mean on the claim, sd = margin: both one-sided tests at 80 % power need 10 seeds or so.
    # Normal approximation: (1.645 + 1.282)^2 = 8.6, a few more for the t distribution.
    assert 9 <= verdict.seeds_to_decide <= 12
    assert f"{verdict.seeds_to_decide} seeds would decide with power 80 %" in verdict.reason
    alone = verdict_on(CD, [value])
    assert (alone.answer, alone.seeds_to_decide) == ("inconclusive", None)
    assert "at least 2 seeds" in alone.reason


def test_the_mean_decides_and_never_the_least_of_the_runs():
    value, margin = claim(CD).value, claim(CD).margin
    values = [value, value + 4 * margin, value + 4.1 * margin, value + 3.9 * margin]
    assert verdict_on(CD, [*values, *values[1:] * 4]).answer == "not reproduced"


# Like with like


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"dataset": "cifar10-jpeg-train"}, "training data cifar10-train there, cifar10-jpeg-"),
        ({"network": "demo"}, "network ncsnpp-cifar10 there, demo here"),
        ({"images_seen": 51_200_000}, "images seen 409,600,000 there, 51,200,000 here"),
        ({"global_batch": 256}, "global batch 512 there, 256 here"),
        ({"training_steps": 400_000}, "training steps 800,000 there, 400,000 here"),
        ({"initialisation": "random"}, "initialisation teacher there, random here"),
        ({"weights": "online"}, "weights EMA 0.9999 there, online here"),
        ({"changes": {"ema_rate": 0.999}}, "weights EMA 0.9999 there, EMA 0.999 here"),
        ({"changes": {"distance": "l2"}}, "distance lpips there, l2 here"),
        ({"changes": {"solver": "euler"}}, "solver heun there, euler here"),
        ({"changes": {"num_scales": None}}, "num_scales 18 there, by a schedule here"),
        ({"num_images": 10_000}, "images scored 50,000 there, 10,000 here"),
        ({"protocol": {"name": "cm-cifar10", "version": 2}}, "protocol version 1 there, 2 here"),
        ({"protocol": {"name": "adm", "version": 1}}, "protocol cm-cifar10 there, adm here"),
        (
            {"protocol": {"name": "cm-cifar10", "version": 1, "reference": "cifar10-train"}},
            "cm-cifar10 against cifar10-jpeg-train here",
        ),
        (
            {"selection": SELECTION | {"rule": "minimum of 3 runs"}},
            "selection last checkpoint there, minimum of 3 runs here",
        ),
        ({"images_seen": None}, "not known: images seen (here)"),
    ],
)
def test_one_field_that_differs_is_named_with_both_values(given, text):
    values = claim(CD).value + np.array([-0.01, 0.0, 0.01])
    assert verdict_on(CD, values).answer == "reproduced"
    verdict = verdict_on(CD, values, **given)
    assert (verdict.answer, verdict.reason.count(" there, ")) == (
        "not comparable",
        0 if "not known" in text else 1,
    )
    assert text in verdict.reason


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"weights": "not stated"}, "not known: weights (here)"),
        ({"selection": None}, "not known: selection (here)"),
        ({"selection": SELECTION | {"rule": "as released"}}, "not known: selection (here)"),
        ({"initialisation": None}, "not known: initialisation (here)"),
    ],
)
def test_a_field_that_is_unknown_is_named(given, text):
    verdict = verdict_on(CD, claim(CD).value + np.array([-0.01, 0.0, 0.01]), **given)
    assert verdict.answer == "reproduced"
    assert text in verdict.reason


def test_the_released_ct_checkpoint_stops_early():
    given = {"training_steps": 740_000, "images_seen": 740_000 * 512}
    verdict = verdict_on(CT, [claim(CT).value] * 3, **given)
    assert verdict.answer == "not comparable"
    assert "training steps 800,000 there, 740,000 here" in verdict.reason
    assert "images seen 409,600,000 there, 378,880,000 here" in verdict.reason


def test_what_a_claim_compares_is_what_its_recipe_trains():
    for paper in claims():
        if isinstance(paper, AbsoluteClaim):
            recipe = load_recipe(paper.setting.recipe)
            assert (paper.network, paper.training_data) == (recipe.network, recipe.dataset)
            assert paper.initialisation == recipe.initialisation
            assert paper.images_seen == recipe.batch_size * recipe.total_steps
            assert paper.ema_rate == recipe.ema_rate
            fields = ablated_fields(paper.setting.recipe)
            assert fields == {name: getattr(recipe, name) for name in fields}
    for name in ("cifar10-cd", "cifar10-ct"):
        recipe, fields = load_recipe(f"demo-{name}"), ablated_fields(name, demo=True)
        assert fields == {field: getattr(recipe, field) for field in fields}


# Selection


def searched(seeds, text="last checkpoint; second time t(11) = 0.6 of 18 points: least fid"):
    return {"selection": SELECTION | {"text": text, "seeds": seeds}}


def test_seeds_that_the_second_time_was_chosen_on_do_not_count():
    value = claim(TWO_STEPS).value
    values = [value - 1.0, value - 0.01, value, value + 0.01]  # seed 0 is flattered
    verdict = verdict_on(TWO_STEPS, values, **searched([0]))
    assert verdict.answer == "reproduced"
    assert "over 3 seeds" in verdict.reason
    assert "without seed 0, on which checkpoint or time was chosen" in verdict.reason
    nothing_left = verdict_on(TWO_STEPS, [value, value], **searched([0, 1]))
    assert nothing_left.answer == "not comparable"
    assert "without seed 0, 1" in nothing_left.reason


def test_the_second_time_does_not_touch_one_step():
    values = claim(CD).value + np.array([-0.01, 0.0, 0.01])
    assert "without seed" not in verdict_on(CD, values, **searched([0])).reason


@pytest.mark.parametrize(
    "text",
    ["last checkpoint, tried on seeds 0 to 1", "last checkpoint, tried on seeds 0 and 1"],
)
def test_a_checkpoint_chosen_on_seeds_says_so_in_words_too(text):
    values = claim(CD).value + np.array([-1.0, 1.0, -0.01, 0.0, 0.01])
    verdict = verdict_on(CD, values, **searched(None, text))
    assert verdict.answer == "reproduced"
    assert "without seed 0, 1" in verdict.reason


# Several models


def test_one_checkpoint_under_two_names_counts_once():
    values = claim(CD).value + np.array([-0.01, 0.01])
    records = [paper_record(CD, seed, value) for seed, value in enumerate(values)]
    copies = [
        paper_record(CD, seed, value, model="a-copy", checkpoint=records[0].checkpoint)
        for seed, value in enumerate(values)
    ]
    assert absolute_verdict(claim(CD), records + copies).mean.n == 2


def test_models_that_disagree_are_inconclusive():
    value = claim(CD).value
    other = paper_record(CD, 0, value).checkpoint | {"sha256": sha256_of("other")}
    good = [paper_record(CD, seed, value + 0.01 * seed) for seed in range(3)]
    bad = [
        paper_record(CD, seed, value + 2 + 0.01 * seed, model="other", checkpoint=other)
        for seed in range(3)
    ]
    verdict = absolute_verdict(claim(CD), good + bad)
    assert verdict.answer == "inconclusive"
    assert "cifar10-cd reproduced" in verdict.reason
    assert "other not reproduced" in verdict.reason


def test_a_comparable_model_counts_beside_those_that_are_not():
    value = claim(CD).value
    records = [
        *(paper_record(CD, seed, value + 0.01 * seed) for seed in range(3)),
        *(paper_record(CD, seed, 9.0, changes={"distance": "l2"}) for seed in range(3)),
        demo_record("cd", 1, 0, 2000.0),
    ]
    assert absolute_verdict(claim(CD), records).answer == "reproduced"
    assert absolute_verdict(claim(CD), records[3:]).answer == "not comparable"


def test_demo_scores_are_not_comparable_with_printed_ones():
    verdict = absolute_verdict(claim(CD), [demo_record("cd", 1, 0, claim(CD).value)])
    assert verdict.answer == "not comparable"
    assert "images seen 409,600,000 there, 320 here" in verdict.reason
    assert "protocol cm-cifar10 there, embedded here" in verdict.reason


def test_the_demo_model_named_is_that_of_the_table_and_no_ablation():
    ablation = demo_record("cd", 1, 0, 2000.0, model="nearer")
    recipe = ablation.checkpoint["recipe"] | {"num_scales": 18, "s0": None, "s1": None}
    ablation.checkpoint.update(recipe=recipe, sha256="of-nearer")
    ablation.comparable["images_seen"] = 409_600_000
    verdict = absolute_verdict(claim(CD), [ablation, demo_record("cd", 1, 0, 2000.0)])
    assert verdict.reason.startswith("demo-cifar10-cd: training data ")


def test_there_is_a_verdict_for_every_claim():
    found = verdicts([demo_record("cd", 1, 0, 2000.0)])
    assert [verdict.claim_id for verdict in found] == [paper.id for paper in claims()]
    assert all("\n" not in verdict.reason and verdict.reason for verdict in found)
