"""Attribution of the difference between two protocols, and the emulated rounding."""

import numpy as np
import pytest

from cmrepro.data import ImageDataset, synthetic
from cmrepro.experiments.explain import Requantized, explain, explanation_rows
from cmrepro.experiments.run import Origin, evaluate
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import write_statistics
from cmrepro.metrics.references import build_reference
from cmrepro.settings import Protocol

REAL = synthetic(60, size=16, seed=1)
IMAGES = synthetic(40, size=16, seed=2)
EMBEDDED = load_protocol("embedded")


def small(name: str, **changes: object) -> Protocol:
    settings = {
        "num_images": 30,
        "stored_features": {"num_images": 50, "seed": 0},
        "metrics": ("fid", "is", "recall"),
    }
    return EMBEDDED.replace(name=name, **(settings | changes))


def saved_reference(folder, protocol, images=REAL):
    path = folder / f"{protocol.name}.npz"
    built = build_reference(images, protocol, dataset=images.name, split="all")
    write_statistics(path, built)
    return protocol.replace(reference=str(path))


def test_changes_add_up_from_one_protocol_to_the_other(tmp_path):
    larger = EMBEDDED.extractor.replace(name="larger", image_size=96)
    first = saved_reference(tmp_path, small("first"))
    second = small(
        "second",
        extractor=larger,
        to_uint8="truncate",
        num_images=35,
        inception_score={"num_splits": 5, "shuffle": True, "seed": 2020},
        metrics=("is", "fid", "recall", "precision"),
    )
    second = saved_reference(tmp_path, second, synthetic(60, size=16, seed=3))
    steps = explain(IMAGES, first, second, real=REAL)
    assert [step.change for step in steps] == [
        "",
        "rounding (emulated)",
        "reference",
        "extractor",
        "reference",
        "number of images",
        "metric settings",
    ]
    rows = explanation_rows(steps)
    for metric in ("fid", "is", "recall"):
        moved = sum(row[f"{metric} moved"] for row in rows)
        assert moved == pytest.approx(steps[-1].scores[metric] - steps[0].scores[metric])
        assert "precision" not in rows[0]
    # Both ends are what a plain evaluation gives, the last one of the truncated images.
    [record] = evaluate(IMAGES, [first], Origin("x"))
    assert steps[0].scores == record.scores
    [record] = evaluate(Requantized(IMAGES, "truncate"), [second], Origin("x"))
    assert steps[-1].scores == pytest.approx({m: record.scores[m] for m in steps[-1].scores})
    # The reference was rebuilt from the images it had been built from: nothing moves there.
    assert steps[2].scores == pytest.approx(steps[1].scores)
    # Settings of IS do not move the Fréchet distance, the count moves all.
    assert steps[6].scores["fid"] == steps[5].scores["fid"]
    assert steps[6].scores["is"] != steps[5].scores["is"]
    assert steps[5].scores["fid"] != steps[4].scores["fid"]


def test_a_protocol_explains_itself_by_nothing(tmp_path):
    protocol = saved_reference(tmp_path, small("first"))
    [step] = explain(IMAGES, protocol, protocol)
    assert step.change == ""


def test_what_cannot_be_explained_says_why(tmp_path):
    first = saved_reference(tmp_path, small("first"))
    with pytest.raises(ValueError, match="share no metric"):
        explain(IMAGES, first, first.replace(metrics=("precision",)))
    other = EMBEDDED.extractor.replace(name="other", image_size=96)
    with pytest.raises(ValueError, match="give them with --real"):
        explain(IMAGES, first, first.replace(extractor=other))


def test_emulated_truncation_has_the_moments_of_truncation():
    """Values of a density that hardly changes within a level, made uint8 by both rules.

    A level holds up to 2 % of 300,000 pixels, with a standard error of 0.00026.
    """
    exact = np.random.default_rng(0).normal(128, 20, (100, 10, 100, 3))
    rounded = ImageDataset("r", exact.round().astype(np.uint8))
    truncated = ImageDataset("t", np.floor(exact).astype(np.uint8))
    for source, rule, target in [(rounded, "truncate", truncated), (truncated, "round", rounded)]:
        [emulated] = Requantized(source, rule).batches(100)
        shares = [
            np.bincount(x.ravel(), minlength=256) / x.size for x in (emulated, target.images)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 0.0013
        # Means: 1/2 apart before, their standard error is 0.001 of coins alone.
        assert emulated.mean() == pytest.approx(target.images.mean(), abs=0.005)


def test_emulation_leaves_the_ends_and_does_not_depend_on_batches():
    images = np.random.default_rng(0).choice([0, 1, 254, 255], (9, 4, 4, 3)).astype(np.uint8)
    for rule in ("truncate", "round"):
        source = Requantized(ImageDataset("x", images), rule)
        whole = np.concatenate(list(source.batches(9)))
        assert np.array_equal(np.concatenate(list(source.batches(4))), whole)
        assert np.array_equal(np.concatenate(list(source.batches(2, 3, 7))), whole[3:7])
        ends = np.isin(images, [0, 255])
        assert np.array_equal(whole[ends], images[ends])
        assert (whole[~ends] != images[~ends]).any()
