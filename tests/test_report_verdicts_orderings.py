"""Verdicts on orderings and ablations: which records they are by, error rates, answers."""

from itertools import chain

import numpy as np
import pytest
from paper_records import paper_record
from records_of import altered, demo_record, sha256_of
from scipy import stats

from cmrepro.paper import claim
from cmrepro.report.results import claims_rows, demo_rows, record_rows
from cmrepro.report.verdicts import ordering_verdict

PLACE = "song2023/ordering/{}/cifar10"
STEPS = claim(PLACE.format("cd-2-steps-better-than-1"))
CD_CT = claim(PLACE.format("cd-better-than-ct-nfe1"))
L2 = claim(PLACE.format("cd-lpips-better-than-l2"))
L1 = claim(PLACE.format("cd-l2-better-than-l1"))
SCALES = claim(PLACE.format("cd-num-scales-optimum"))
CASES = 300
NOISE = 0.038  # three standard errors of 300 cases at a rate of 5 %


def demo(method, values, nfe=1, *, suffix="", changes=None, **recipe):
    """Records of a demo model, one a seed; recipe fields make another checkpoint of that name."""
    fields = {f"checkpoint.recipe.{key}": value for key, value in recipe.items()}
    fields["checkpoint.sha256"] = sha256_of(f"{method}{suffix}{sorted(recipe.items())}")
    fields["model"] = f"demo-cifar10-{method}{suffix}"
    return [
        altered(demo_record(method, nfe, seed, value), fields | (changes or {}))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("one_step", "two_steps", "answer"),
    [
        ([100, 101, 102], [90, 91, 92.5], "holds at demo scale"),
        ([90, 91, 92.5], [100, 101, 102], "does not hold at demo scale"),
        ([100, 90, 110], [95, 96, 97], "inconclusive"),
        ([100], [90], "inconclusive"),
        ([], [90, 91], "not measured"),
        # The seeds differ by far more than the steps do: only pairs show the difference.
        ([100, 200, 300], [99, 199.1, 298.9], "holds at demo scale"),
    ],
)
def test_two_steps_against_one(one_step, two_steps, answer):
    records = demo("cd", one_step) + demo("cd", two_steps, nfe=2)
    assert ordering_verdict(STEPS, records).answer == answer


def test_the_reason_says_how_many_and_how_sure():
    records = demo("cd", [100, 102, 101]) + demo("cd", [90, 90, 91], nfe=2)
    verdict = ordering_verdict(STEPS, records)
    low, high = stats.ttest_rel([100, 102, 101], [90, 90, 91]).confidence_interval(0.95)
    gain = verdict.estimate
    assert gain.mean - gain.half_width == pytest.approx(low)
    assert gain.mean + gain.half_width == pytest.approx(high)
    assert verdict.reason.startswith("FD 90.33 against 101, better by 10.67 ± ")
    [note] = verdict.notes
    assert note.startswith("paired by seed;")  # 2 steps draw more noise than 1


def test_the_reason_says_which_metrics_order_the_other_way():
    one, two = demo("cd", [100, 102, 101]), demo("cd", [90, 90, 91], nfe=2)
    for record in two:
        record.scores.update({"kid": 0.6, "is": 3.5, "recall": 0.2 - 0.1 * record.seed})
    assert ordering_verdict(STEPS, one + two).notes[-1] == "the other way with every seed: KID"


def simulated(claimed, better, worse, gains):
    """Shares of the answers for given gains of the better side by seed."""
    found = []
    for row in np.atleast_2d(gains).tolist():
        for a, b, gain in zip(better, worse, row, strict=True):
            a.scores["fid"], b.scores["fid"] = 100.0 + 10 * a.seed, 100.0 + 10 * a.seed + gain
        found.append(ordering_verdict(claimed, [*better, *worse]).answer)
    return {answer: found.count(answer) / len(found) for answer in set(found)}


@pytest.mark.parametrize("n", [3, 10])
def test_equal_models_are_rarely_ordered(n):
    gains = np.random.default_rng(n).normal(0, 2, (CASES, n))
    found = simulated(CD_CT, demo("cd", [0] * n), demo("ct", [0] * n), gains)
    assert found.get("holds at demo scale", 0) <= 0.025 + NOISE
    assert found.get("does not hold at demo scale", 0) <= 0.025 + NOISE


def test_of_many_worse_sides_none_is_denied_by_chance():
    # Seven equal candidates of N: each at 5 % would deny the claim in up to 7 x 2.5 %.
    n, draws = 5, np.random.default_rng(0)
    sides = [
        demo("cd", [0] * n, suffix=f"-{scales}", num_scales=scales, s0=None, s1=None)
        for scales in (18, 9, 12, 36, 50, 60, 80, 120)
    ]
    denied, cases = 0, 200
    for _ in range(cases):
        for side in sides:
            for record in side:
                record.scores["fid"] = 100 + draws.normal()
        answer = ordering_verdict(SCALES, list(chain(*sides))).answer
        assert answer in ("inconclusive", "does not hold at demo scale", "holds at demo scale")
        denied += answer == "does not hold at demo scale"
    assert denied / cases <= 0.05 + 0.046  # three standard errors of 200


# Seeds of training and of sampling

TRAINING = "checkpoint.training."


def trained_with(method, values, nfe=1, suffix="", **changes):
    """Records of a demo model by training seed: its scores by sampling seed."""
    return [
        record
        for seed, scores in values.items()
        for record in demo(
            method,
            [float(score) for score in scores],
            nfe,
            suffix=suffix,
            changes=changes
            | {f"{TRAINING}seed": seed, f"{TRAINING}duration_s": 100.0 + seed}
            | {"checkpoint.sha256": sha256_of(f"{method} {seed}")},
        )
    ]


def test_an_interval_over_trainings_is_not_one_over_sampling_seeds():
    # The spread over trainings is ten times that over sampling seeds.
    cd = np.array([[100.0, 101, 102], [120, 121, 122], [140, 141, 142]])
    ct = cd + np.array([[25], [12], [40]]) + np.arange(3)
    records = [
        *trained_with("cd", dict(enumerate(cd))),
        *trained_with("ct", dict(enumerate(ct))),
    ]
    verdict = ordering_verdict(CD_CT, records)
    low, high = stats.ttest_rel(ct.mean(1), cd.mean(1)).confidence_interval(0.95)
    gain = verdict.estimate
    assert (gain.low, gain.high, gain.n) == pytest.approx((low, high, 3))
    assert verdict.answer == "inconclusive"
    assert "(95 % interval, 3 training seeds)" in verdict.reason
    for order in (records, records[::-1]):
        [row, _] = demo_rows(order)
        assert row["FD"].startswith("121.0 ± ")
        assert (row["seeds"], row["training_seeds"]) == (3, 3)
    assert {row["training_seed"] for row in record_rows(records)} == {0, 1, 2}


def test_common_seeds_of_training_are_paired():
    cd = {0: [100, 101], 1: [500, 501], 2: [102, 104]}
    for ct, mean, seeds in (
        ({0: [110, 112], 2: [110, 112]}, 9.25, "2 training seeds"),
        ({2: [110, 112]}, 8, "2 sampling seeds"),
        ({7: [110, 112]}, 10.5, "2 sampling seeds"),  # none is common: the first of each side
    ):
        verdict = ordering_verdict(CD_CT, [*trained_with("cd", cd), *trained_with("ct", ct)])
        assert verdict.estimate.mean == pytest.approx(mean)
        assert verdict.reason.endswith(f"(95 % interval, {seeds})")
    # One model at 1 and 2 steps: of the training that has both.
    two = trained_with("cd", {1: [400, 402]}, nfe=2)
    assert ordering_verdict(STEPS, [*trained_with("cd", cd), *two]).estimate.mean == 99.5


def test_trainings_of_several_seeds_decide_only_between_themselves():
    short = {0: [95, 95, 95], 1: [96, 96, 96], 2: [97, 97, 97]}
    longer = {0: [98, 98, 98], 1: [99, 99, 99], 2: [99, 99, 99]}
    short_cd = trained_with("cd", short, suffix="-short", **{f"{TRAINING}total_steps": 99})
    long_cd = demo("cd", [50.0, 50, 50])
    verdict = ordering_verdict(CD_CT, [*long_cd, *short_cd, *trained_with("ct", longer)])
    assert verdict.reason.startswith("FD 96 against 98.67")
    # Beside a single training they do not take the place of the model named like its recipe.
    verdict = ordering_verdict(CD_CT, [*long_cd, *short_cd, *demo("ct", [60.0, 60, 60])])
    assert verdict.reason.startswith("FD 50 against 60")


@pytest.mark.parametrize("duration_s", [100.0, 200.0])
def test_files_of_one_training_seed_are_models_of_their_own(duration_s):
    again = {f"{TRAINING}duration_s": duration_s, "checkpoint.sha256": sha256_of("another file")}
    twice = demo("cd", [101.0, 102, 103], changes=again | {f"{TRAINING}seed": 0})
    records = [*trained_with("cd", {0: [100, 101, 102], 1: [99, 99, 99]}), *twice]
    for order in (records, records[::-1]):
        means = sorted(row["FD"].split(" ")[0] for row in demo_rows(order))
        assert means == ["101.0", "102.0", "99.00"]
    copy = [altered(record, {"model": "a-copy"}) for record in twice]
    of_copy, of_both = demo_rows([*records[:6], *copy])
    assert (of_copy["training_seeds"], of_both["training_seeds"]) == (1, 2)


# Which records stand for a setting


@pytest.mark.parametrize("weighting", [None, "1 / c_out^2"])  # the paper's, the demo's
def test_an_ablation_is_matched_by_the_recipe_in_the_record(weighting):
    base = demo("cd", [90, 91, 92], weighting=weighting)
    l1 = demo("cd", [100, 102, 101], suffix="-l1", distance="l1", weighting=weighting)
    verdict = ordering_verdict(L1, base + l1)
    assert verdict.answer == "holds at demo scale"
    assert "paired by seed;" not in str(verdict.notes)  # the recorded noise is the same
    # The name says nothing: the same without the changed field is no record of l1.
    unchanged = demo("cd", [100, 102, 101], suffix="-l1")
    assert "distance = l1" in ordering_verdict(L1, base + unchanged).reason


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"dropout": 0.3}, "dropout 0 for the better, 0.3 for the worse"),
        ({"s1": 20}, "s1 10 for the better, 20 for the worse"),
        ({"weighting": None}, "weighting 1 / c_out^2 for the better, none for the worse"),
        ({"changes": {TRAINING + "teacher_sha256": "b" * 64}}, "teacher_sha256 aaaaaaaaaa for"),
        ({"changes": {"sampler.precision": "bf16"}}, "precision fp32 for the better, bf16 for"),
        (
            {"changes": {"checkpoint.network": "other"}},
            "network patch-unet for the better, other for",
        ),
    ],
)
def test_an_ablation_differs_in_nothing_else(changed, text):
    teacher = {TRAINING + "teacher_sha256": "a" * 64}
    base = demo("cd", [90, 91, 92], changes=teacher)
    settings = {"suffix": "-l1", "distance": "l1"} | changed
    settings["changes"] = teacher | changed.get("changes", {})
    verdict = ordering_verdict(L1, base + demo("cd", [100, 102, 101], **settings))
    assert verdict.answer == "not comparable"
    assert verdict.reason.startswith(text)


def test_a_learning_rate_of_another_distance_is_named():
    base = demo("cd", [90, 91, 92])
    halved = demo("cd", [100, 102, 101], suffix="-l1", distance="l1", learning_rate=2e-4)
    verdict = ordering_verdict(L1, base + halved)
    assert verdict.answer == "holds at demo scale"
    [note] = verdict.notes
    assert note.endswith("learning_rate 0.0004 for the better, 0.0002 for the worse")


def test_a_stand_in_and_a_mere_figure_are_named():
    base = demo("cd", [90, 91, 92])
    verdict = ordering_verdict(L2, demo("cd", [80, 81, 82], distance="efficientnet") + base)
    assert verdict.answer == "holds at demo scale"
    for text in (verdict.statement(L2), str(verdict), verdict.reason):
        assert "EfficientNet" in text and "LPIPS" in text
    [row] = [row for row in claims_rows(base) if row["id"] == L1.id]
    assert "figure only" in row["statement"] and "not verified" in row["note"]
    assert row["basis"] == "figure"


@pytest.mark.parametrize(
    ("better", "worse", "label"),
    [
        (100, 178, "holds at demo scale"),
        (100, 182, "inconclusive: the worse side did not train"),
        (182, 100, "inconclusive: the better side did not train"),
        (178, 100, "does not hold at demo scale"),
    ],
)
def test_a_side_within_a_tenth_of_noise_decides_nothing(better, worse, label):
    cd, ct = (demo(m, [x, x + 1, x - 1]) for m, x in (("cd", better), ("ct", worse)))
    noise = demo_record("cd", None, None, 200.0, model="uniform-noise")
    verdict = ordering_verdict(CD_CT, [*cd, *ct, noise])
    assert str(verdict) == label
    assert "noise has 200" in verdict.reason or verdict.answer != "inconclusive"
    other = altered(noise, {"reference.sha256": "b" * 64})  # of another scale
    assert "hold" in ordering_verdict(CD_CT, [*cd, *ct, other]).answer


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataset": "mine"}, "dataset cifar10-train or cifar10-jpeg-train expected, mine for"),
        ({"dataset_sha256": "b" * 64}, "expected, other images named cifar10-jpeg-train for the"),
        ({"dataset": "mine", "dataset_sha256": "a" * 64}, None),  # the same under another name
    ],
)
def test_the_images_trained_on_decide_and_not_their_name(changes, text):
    fields = {"reference.images_sha256": "a" * 64}
    fields |= {TRAINING + key: value for key, value in changes.items()}
    cd, ct = (demo(m, x, changes=fields) for m, x in (("cd", [9, 8, 9]), ("ct", [19, 18, 18])))
    verdict = ordering_verdict(CD_CT, cd + ct)
    assert verdict.answer == ("not comparable" if text else "holds at demo scale")
    assert text is None or text in verdict.reason


def test_a_model_trained_alike_is_taken_where_the_recipes_own_is_not():
    own = demo("cd", [80, 81, 82], changes={TRAINING + "images_seen": 640})
    short = demo("cd", [90, 91, 92], suffix="-l2", total_steps=5)
    verdict = ordering_verdict(L1, own + short + demo("cd", [100, 102, 101], distance="l1"))
    assert verdict.answer == "holds at demo scale"
    assert verdict.reason.startswith("FD 91 against 101, better by 10.00")


def test_two_methods_may_be_trained_otherwise_and_the_verdict_says_so():
    ct = demo("ct", [100, 102, 101], changes={TRAINING + "images_seen": 640})
    verdict = ordering_verdict(CD_CT, demo("cd", [90, 91, 92]) + ct)
    assert verdict.answer == "holds at demo scale"
    assert "images_seen 320 for the better, 640 for the worse, distance l2" in verdict.notes[0]
    assert "weighting 1 / c_out^2 for the better, none for the worse" in verdict.notes[0]
    assert "optimizer muon for the better, radam for the worse" in verdict.notes[0]


@pytest.mark.parametrize("nfe", [1, 2])
def test_cd_is_compared_with_the_student_of_as_many_steps(nfe):
    cd, other = demo("cd", [90, 91, 92], nfe), demo("pd", [80, 81, 82], 3 - nfe)
    cd_pd = claim(PLACE.format(f"cd-better-than-pd-nfe{nfe}"))
    assert ordering_verdict(cd_pd, cd + other).answer == "not measured"
    verdict = ordering_verdict(cd_pd, cd + other + demo("pd", [100, 102, 101], nfe))
    assert verdict.answer == "holds at demo scale"
    models = {row["model"] for row in demo_rows([*cd, *other])}
    assert models == {"demo-cifar10-cd", "demo-cifar10-pd"}  # no ablation


def test_nfe_of_two_different_checkpoints_are_not_comparable():
    other = demo("cd", [80, 80, 81], 2, suffix="-again")
    verdict = ordering_verdict(STEPS, demo("cd", [90, 91, 92]) + other)
    assert verdict.answer == "not comparable"
    assert "model demo-cifar10-cd-again for the better" in verdict.reason


# Seeds and noise


@pytest.mark.parametrize("noise", [None, sha256_of("other noise")])
def test_sides_of_other_noise_are_paired_by_seed_alone(noise):
    base, l1 = demo("cd", [90, 91, 92]), demo("cd", [100, 102, 101], suffix="-l1", distance="l1")
    assert ordering_verdict(L1, base + l1).notes == ()
    l1[1] = altered(l1[1], {"hashes.noise": noise})
    [note] = ordering_verdict(L1, base + l1).notes
    assert note.startswith("paired by seed; the two sides")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("key", "other", "text"),
    [
        ("sampler.times", [80.0, 20.0], "times 80 → 0.8 expected, 80 → 20 for the better"),
        ("sampler.to_uint8", "truncate", "to_uint8 round expected, truncate for the better"),
    ],
)
def test_the_sampling_of_checkpoint_and_protocol_counts(key, other, text, order):
    one_step, two_steps = demo("cd", [100, 101, 102]), demo("cd", [90, 91, 92], 2)
    others = [altered(record, {key: other, "scores.fid": 200.0}) for record in two_steps]
    records = (one_step + two_steps + others)[::order]
    assert ordering_verdict(STEPS, records).answer == "holds at demo scale"
    verdict = ordering_verdict(STEPS, one_step + others)
    assert verdict.answer == "not comparable" and text in verdict.reason


# Full scale

CD = "song2023/table1/cd/nfe1/fid"
CT = "song2023/table1/ct/nfe1/fid"


def full(claimed, values, changes=None, **recipe):
    return [paper_record(claimed, s, value, changes, **recipe) for s, value in enumerate(values)]


def test_full_scale_records_reproduce_an_ordering():
    cd, ct = full(CD, [3.5, 3.6, 3.55]), full(CT, [8.7, 8.6, 8.8])
    assert ordering_verdict(CD_CT, cd + ct).answer == "reproduced"
    worse = full(CD, [9.5, 9.6, 9.55])
    assert ordering_verdict(CD_CT, worse + ct).answer == "not reproduced"


def test_the_demo_answers_where_a_model_of_the_papers_size_is_not_comparable():
    short = {TRAINING + "total_steps": 730_000}
    records = full(CD, [3.5, 3.6, 3.55]) + full(CT, [8.7, 8.6, 8.8], short)
    verdict = ordering_verdict(CD_CT, records)
    assert verdict.answer == "not comparable"
    assert verdict.reason == "total_steps 800,000 in the paper, 730,000 for the worse"
    both = records + demo("cd", [90, 91, 92]) + demo("ct", [100, 102, 101])
    assert ordering_verdict(CD_CT, both).answer == "holds at demo scale"
