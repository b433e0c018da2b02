"""`cmrepro doctor` in closed form: measures, likelihoods, calibration, files that are here."""

import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cmrepro.checks import pixels, sets, statements
from cmrepro.checks.calibrate import Published, calibration_rows, published_scores
from cmrepro.checks.checkpoints import mirrored_time, online_weights, relative_distance
from cmrepro.checks.examine import finding_rows, recognise
from cmrepro.checks.findings import Examination, likelihood
from cmrepro.checks.installed import file_state
from cmrepro.checks.records import swapped_metrics
from cmrepro.checks.statistics import mean_distance, rank, statistics_finding
from cmrepro.cli.doctor import doctor
from cmrepro.consistency.schedules import karras_times
from cmrepro.data import synthetic
from cmrepro.files import RECORDED
from cmrepro.metrics.protocols import protocol_names
from cmrepro.metrics.reference_files import ReferenceMetadata, StoredStatistics


def test_likelihood() -> None:
    assert [likelihood(v, 2.0) for v in (-1, 0, 1, 2, 4, 20)] == [0, 0, 0, 0.5, 0.75, 0.95]


@pytest.mark.parametrize(("quality", "subsampling"), [(62, 2), (75, 2), (90, 0)])
def test_the_quality_of_a_jpeg_is_measured(quality: int, subsampling: int) -> None:
    grain = np.random.default_rng(0).integers(-12, 13, (24, 32, 32, 1))  # grey, as most of real
    images = (synthetic(24).images + grain).clip(0, 255)
    trace = pixels.jpeg_trace(pixels.compressed(images.astype(np.uint8), quality, subsampling))
    assert abs(trace.quality - quality) <= 1  # neighbouring qualities have nearly one table
    assert trace.subsampling == subsampling
    assert trace.strength > 2
    assert pixels.jpeg_trace(images.astype(np.uint8)).strength < 1.3


def statistics(mu: Any, sigma: Any) -> StoredStatistics:
    return StoredStatistics(mu, sigma, None, ReferenceMetadata())


def test_a_mean_is_as_far_off_as_that_of_so_many_images() -> None:
    """One standard deviation over N^0.5 along every axis is what N images give on average."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(30, 90))
    sigma = root @ root.T
    mu = generator.normal(size=30)
    shift = np.linalg.cholesky(sigma) @ np.ones(30) / 400**0.5
    distance = mean_distance(statistics(mu + shift, sigma), statistics(mu, sigma))
    assert distance.num_images == pytest.approx(400)  # by rounding alone
    assert mean_distance(statistics(mu, sigma), statistics(mu, sigma)).num_images == np.inf


def test_the_rank_tells_the_number_of_images() -> None:
    features = np.random.default_rng(0).normal(size=(25, 40))
    sigma = np.cov(features, rowvar=False).astype(np.float32)
    assert rank(sigma.astype(np.float64)) == 24


def test_too_few_images_are_told_by_the_rank_or_by_the_file() -> None:
    generator = np.random.default_rng(0)
    own, some, few = (generator.normal(size=(n, 9)) + np.arange(9) for n in (500, 40, 5))
    reference = statistics(own.mean(0), np.cov(own, rowvar=False))
    for features, said, measured in (
        (some, 40, "40 images"),  # as the file says, its covariance has full rank
        (few, None, "covariance of rank 4, so that it is of 5 images"),
    ):
        metadata = ReferenceMetadata(num_images=said)
        sigma = np.cov(features, rowvar=False)
        given = StoredStatistics(features.mean(0), sigma, None, metadata)
        finding = statistics_finding(given, reference, 100)
        assert finding is not None
        assert (finding.cause, finding.measured) == ("too-few-images", measured)


def test_mirrored_times_are_grid_points_from_the_other_end() -> None:
    """Point 11 of 18 and point 6 of 18: what counting from the wrong end exchanges."""
    times = karras_times(18)
    # 1,001 points between: 0.5 % of a time where the grid is widest.
    assert mirrored_time(float(times[11]), 0.002, 80.0) == pytest.approx(float(times[6]), rel=0.01)
    assert mirrored_time(80.0, 0.002, 80.0) == pytest.approx(0.002)


def test_the_direction_of_times() -> None:
    for times in ([80.0], [80.0, 0.8]):
        assert statements.direction({"times": times}, 80.0) is None
    for times in ([0.8, 80.0], [80.0, 80.0], [0.8]):
        assert statements.direction({"times": times}, 80.0) is not None
    assert statements.direction({}, None) is None


def test_the_names_of_official_files_tell_averaged_weights() -> None:
    assert statements.online({"source": "ema_0.9999_600000.pt", "weights": "not stated"}) is None
    for origin in ({"source": "model600000.pt"}, {"source": "target_model600000.pt"}):
        assert statements.online(origin) is not None
    assert statements.online({"weights": "online"}) is not None


def test_weights_are_the_nearer_ones() -> None:
    assert online_weights(0.0, 0.1) is not None
    assert online_weights(0.1, 0.0) is None
    assert online_weights(0.0, 0.0) is None
    import torch

    weights = {"a": torch.tensor([3.0, 4.0])}
    assert relative_distance({"a": torch.zeros(2)}, weights) == 1.0


def test_uniform_labels_pass_and_others_do_not() -> None:
    """Total variation of (40, 20, 20, 20) from uniform: 0.15; the limit is 0.8 (4 / 100)^0.5."""
    assert sets.class_counts(np.arange(100) % 4) is None
    labels = np.repeat(np.arange(4), [40, 20, 20, 20])
    assert sets.class_counts(labels) is None
    found = sets.class_counts(np.tile(labels, 4))  # the same shares of 400: limit 0.08
    assert found is not None
    assert found.likelihood == pytest.approx(1 - 0.08 / 0.3)


def test_uniform_draws_pass() -> None:
    """The limit is twice the mean: none of 200 sets of uniform draws exceeds it."""
    generator = np.random.default_rng(0)
    found = [sets.class_counts(generator.integers(0, 10, 500)) for _ in range(200)]
    assert found == [None] * 200


def test_copies_lie_nearer_than_real_images_do() -> None:
    generator = np.random.default_rng(0)
    real, others = generator.normal(size=(2, 40, 30)).astype(np.float32)
    features = np.concatenate([real[:10] + np.float32(1e-3), others])
    assert sets.copied(features, real).tolist() == [True] * 10 + [False] * 40


def test_exchanged_metrics_need_both_to_fit() -> None:
    inside = np.arange(200) < 180  # precision 0.9, limit 0.177
    scores = {"precision": 0.1, "recall": 0.9}
    assert swapped_metrics(scores, inside) is not None
    assert swapped_metrics({"precision": 0.9, "recall": 0.1}, inside) is None
    assert swapped_metrics({"precision": 0.1, "recall": 0.05}, inside) is None


def test_calibration_says_whether_scores_agree() -> None:
    """A set against itself has FID 0; 0.01 and 100 are at either side of the tolerance."""
    images = synthetic(12, 16)
    published = [
        Published("fid", "train", value, "embedded", 0.02, "closed form", "test")
        for value in (0.01, 100.0)
    ]
    rows = calibration_rows(published, {"train": images, "test": images})
    assert [row["verdict"] for row in rows] == ["agrees", "differs"]
    assert rows[1]["difference"] == pytest.approx(-100, abs=1e-3)  # rounding of features


def test_published_scores_name_protocols_and_sources() -> None:
    scores = {(entry.metric, entry.reference): entry for entry in published_scores()}
    assert scores["is", None].value == 11.24
    assert scores["fid", "test"].value == 3.1508
    assert all(e.protocol in protocol_names() and e.source for e in scores.values())


def test_the_state_of_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pt"
    assert file_state(path, RECORDED) == "not here"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert file_state(path, RECORDED) == "here, checksum not recorded yet"
    assert file_state(path, f"sha256:{digest}") == "here, checksum right"
    assert "checksum wrong" in file_state(path, f"sha256:{'0' * 64}")
    (tmp_path / "weights.pt.sha256").write_text(f"{digest}  weights.pt\n")
    assert file_state(path, RECORDED) == "here, checksum right"
    path.write_bytes(b"others")
    assert "checksum wrong" in file_state(path, RECORDED)


@pytest.mark.parametrize("content", [b"plain text, nothing of ours", b"", b"{}", b"\x80\x04."])
def test_what_is_nothing_known_is_one_line(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "something"
    path.write_bytes(content)
    result = CliRunner().invoke(doctor, [str(path)])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert str(path) in result.stderr


def test_the_others_are_examined_beside_what_cannot_be(tmp_path: pathlib.Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    good, grey, gone = (tmp_path / f"{name}.npz" for name in ("good", "grey", "gone"))
    np.savez(good, images)
    np.savez(grey, images[..., 0])
    result = CliRunner().invoke(doctor, [str(x) for x in (grey, gone, good)] + ["--format", "csv"])
    assert result.exit_code == 2
    assert {line.split(",")[0] for line in result.stdout.splitlines()} == {"what", str(good)}
    first, second = result.stderr.splitlines()
    assert first.startswith(f"cmrepro: {grey} holds arr_0 uint8 (20, 8, 8)")
    assert second.startswith(f"cmrepro: nothing at '{gone}'")


def test_what_was_looked_for_is_named() -> None:
    [row] = finding_rows([Examination("x", {"rounding", "jpeg"})])
    words = "pixels truncated where the protocol rounds, or the reverse; JPEG compression behind"
    assert str(row["measured"]).startswith(f"looked for {words}")


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at 'nowhere\.npz'; allowed is a sample"):
        recognise("nowhere.npz")
    result = CliRunner().invoke(doctor, ["--calibrate", "cifar10-train"])
    assert "give two, TRAIN TEST" in str(result.exception)


def test_without_arguments_it_says_what_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    result = CliRunner().invoke(doctor, ["--format", "csv"])
    lines = result.output.splitlines()
    assert lines[0] == "kind,name,state"
    assert f"folder,cache,{tmp_path}" in lines
    assert 'weights,efficientnet-lite0,"here, checksum right"' in lines
    assert "checkpoint,cifar10-cd-lpips,not here" in lines
