"""Attribution of the difference between two protocols, anchors."""

import numpy as np
import pytest

from cmrepro.data import synthetic
from cmrepro.experiments.anchors import anchor_images
from cmrepro.experiments.explain import explain
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import write_statistics
from cmrepro.metrics.references import build_reference, load_reference

REAL = synthetic(60, size=16, seed=1)
IMAGES = synthetic(40, size=16, seed=2)
EMBEDDED = load_protocol("embedded").replace(
    num_images=30, stored_features={"num_images": 50, "seed": 0}, metrics=("fid", "is", "recall")
)


def saved_reference(folder, protocol, images=REAL):
    path = folder / f"{protocol.name}.npz"
    built = build_reference(images, protocol, dataset=images.name, split="all")
    write_statistics(path, built)
    return protocol.replace(reference=str(path))


def test_changes_add_up_from_one_protocol_to_the_other(tmp_path):
    first = saved_reference(tmp_path, EMBEDDED.replace(name="first"))
    second = EMBEDDED.replace(
        name="second",
        extractor=EMBEDDED.extractor.replace(name="larger", image_size=96),
        num_images=35,
        inception_score={"num_splits": 5, "shuffle": True, "seed": 2020},
        metrics=("is", "fid", "recall", "precision"),
    )
    second = saved_reference(tmp_path, second, synthetic(60, size=16, seed=3))
    rows = explain(IMAGES, first, second, real=REAL)
    assert [row["change"] for row in rows] == [
        *("as it is", "reference", "extractor", "reference", "number of images"),
        "metric settings",
    ]
    assert rows[5]["detail"] == "inception_score"
    assert "precision" not in rows[0]
    steps = [{metric: row[metric] for metric in ("fid", "is", "recall")} for row in rows]
    for metric in steps[0]:
        moved = sum(row[f"{metric} moved"] for row in rows)
        assert moved == pytest.approx(steps[-1][metric] - steps[0][metric])
    # Both ends are the scores of an evaluation.
    [scores] = score(IMAGES, [Task(first, load_reference(first))])
    assert steps[0] == scores.values
    [scores] = score(IMAGES, [Task(second, load_reference(second))])
    assert steps[-1] == pytest.approx({metric: scores.values[metric] for metric in steps[-1]})
    # The reference was built again from the same images: nothing moves there.
    assert steps[1] == pytest.approx(steps[0])
    # Settings of IS do not move the Fréchet distance, the number of images moves all.
    assert steps[5]["fid"] == steps[4]["fid"]
    assert steps[5]["is"] != steps[4]["is"]
    assert steps[4]["fid"] != steps[3]["fid"]


def test_equal_protocols_leave_one_row_and_others_may_have_no_answer(tmp_path):
    first = saved_reference(tmp_path, EMBEDDED)
    [row] = explain(IMAGES, first, first)
    assert row["change"] == "as it is"
    with pytest.raises(ValueError, match="share no metric"):
        explain(IMAGES, first, first.replace(metrics=("precision",)))
    other = first.extractor.replace(name="other", image_size=96)
    with pytest.raises(ValueError, match="give them with --real"):
        explain(IMAGES, first, first.replace(extractor=other))


def test_anchors_are_real_blurred_and_noise():
    dataset = synthetic(40, size=8)
    sets = anchor_images(dataset, 30, seed=0)
    real, blurred, noise = sets.values()
    assert list(sets) == ["synthetic", "synthetic-blurred-5px", "uniform-noise"]
    pixels = {image.tobytes() for image in dataset.images}
    assert {image.tobytes() for image in real} <= pixels and len(real) == 30
    # A pixel's value is the mean of the 5 x 5 around it, rounded.
    window = real[:, 1:6, 2:7].astype(float).mean(axis=(1, 2))
    np.testing.assert_allclose(blurred[:, 3, 4], window, atol=0.5 + 1e-4)  # float32 means
    # 5,760 uniform values of variance (256^2 - 1) / 12: 6 standard errors of the mean.
    assert noise.mean() == pytest.approx(127.5, abs=6 * 73.9 / noise.size**0.5)
    with pytest.raises(ValueError, match="has 40 images, needed are 41"):
        anchor_images(dataset, 41, seed=0)
