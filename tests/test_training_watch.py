"""What a run shows: log, TensorBoard, samples, scores, and that it has diverged."""

import json
import math
import pathlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import DATA, SIZE, tiny_networks, tiny_recipe

from cmrepro.consistency.schedules import karras_times
from cmrepro.data import synthetic
from cmrepro.grids import GRID_COLUMNS, GRID_ROWS, GRID_SCALE
from cmrepro.training import step
from cmrepro.training.loop import Rhythm, train
from cmrepro.training.samples import NUM_SAMPLES, QuickScore, draw_samples
from cmrepro.training.step import Training


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_tells_of_progress_and_schedules(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("ct", mixed_precision=True)
    train(recipe, DATA, tmp_path, rhythm=Rhythm(log_every=5))
    log = lines(tmp_path / "log.jsonl")
    assert [(entry["step"], entry["images"]) for entry in log] == [
        (5, 15), (10, 30), (15, 45), (20, 60)
    ]  # fmt: skip
    for entry in log:
        k = entry["step"] - 1  # of the last step it tells of; N(k) by Appendix C
        num_scales = math.ceil(math.sqrt(k / 20 * (11**2 - 2**2) + 2**2) - 1) + 1
        assert entry["num_scales"] == num_scales
        assert entry["mu"] == pytest.approx(math.exp(2 * math.log(0.9) / num_scales))
        # PyTorch's first, halved where a gradient overflowed; 20 steps do not raise it.
        assert entry["loss_scale"] in (65536, 32768, 16384)
        assert entry["images_per_s"] > 0
    assert log[3]["duration_s"] >= log[0]["duration_s"] >= 0
    shown = capsys.readouterr().err
    assert "60.0/60.0" in shown  # images
    assert "images/s" in shown


def test_a_resumed_log_goes_on_from_the_state(tmp_path: pathlib.Path) -> None:
    """Lines beyond it and a torn one, as a killed run leaves them, are written again."""
    rhythm = Rhythm(log_every=1)
    train(tiny_recipe("edm", total_steps=6), DATA, tmp_path, rhythm=rhythm)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"st')
    (tmp_path / "scores.jsonl").write_text('{"step": 6, "quick_fd": 1}\n{"step": 7}\n')
    train(tiny_recipe("edm", total_steps=9), DATA, tmp_path, rhythm=rhythm, resume=True)
    assert [entry["step"] for entry in lines(tmp_path / "log.jsonl")] == [*range(1, 10)]
    assert lines(tmp_path / "scores.jsonl") == [{"step": 6, "quick_fd": 1}]


def scaled_losses(patch: pytest.MonkeyPatch, factors: list[float]) -> None:
    """Multiply the losses of a run's steps."""
    original, rest = step.edm_loss, iter(factors)
    patch.setattr(step, "edm_loss", lambda *args: next(rest) * original(*args))


def test_a_loss_out_of_proportion_stops_the_run(tmp_path: pathlib.Path) -> None:
    """1,000 times the loss from step 13 on; its state is not saved over a good one."""
    with pytest.MonkeyPatch.context() as patch:
        scaled_losses(patch, [1.0] * 12 + [1e3] * 8)
        with pytest.raises(FloatingPointError) as caught:
            train(tiny_recipe("edm"), DATA, tmp_path, rhythm=Rhythm(log_every=2, save_every=5))
    text = str(caught.value)
    assert text.startswith("the loss has diverged at step 14: its mean is ")
    assert text.endswith(
        f"; last good state: {tmp_path / 'state-00000010.pt'}; try a lower learning_rate in a "
        "new folder"
    )
    assert len(lines(tmp_path / "log.jsonl")) == 7
    assert not (tmp_path / "state-00000014.pt").exists()


def test_a_loss_that_falls_and_fluctuates_does_not(tmp_path: pathlib.Path) -> None:
    factors = [100.0 / (k + 1) * (3 if k % 3 else 1) for k in range(20)]
    with pytest.MonkeyPatch.context() as patch:
        scaled_losses(patch, factors)
        train(tiny_recipe("edm"), DATA, tmp_path, rhythm=Rhythm(log_every=1))
    assert len(lines(tmp_path / "log.jsonl")) == 20


def test_fp16_that_fails_is_advised_to_use_another_precision(tmp_path: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        scaled_losses(patch, [math.nan] * 100)
        with pytest.raises(FloatingPointError) as caught:
            train(tiny_recipe("edm", mixed_precision=True), DATA, tmp_path)
    assert str(caught.value) == (
        "the gradient of step 0 is not finite (loss nan); last good state: none, it is younger "
        "than the first save; try --precision fp32 or bf16, or a lower learning_rate in a new "
        "folder"
    )


def test_tensorboard_reads_what_the_log_has(tmp_path: pathlib.Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rhythm = Rhythm(log_every=2)
    for total_steps in (6, 10):
        recipe = tiny_recipe("edm", total_steps=total_steps)
        train(recipe, DATA, tmp_path, rhythm=rhythm, tensorboard=True, resume=total_steps > 6)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    logged = [(entry["step"], entry["loss"]) for entry in lines(tmp_path / "log.jsonl")]
    assert [number for number, _ in shown] == [2, 4, 6, 8, 10]
    assert shown == [(number, pytest.approx(loss, rel=1e-6)) for number, loss in logged]  # float32


def test_without_tensorboard_it_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard: pip install 'cmrepro\[tensorboard\]'"):
        train(tiny_recipe("edm"), DATA, tmp_path, tensorboard=True)


def test_samples_and_scores_do_not_touch_the_run(tmp_path: pathlib.Path) -> None:
    """And show the averaged weights of their steps."""
    recipe = tiny_recipe("ct", total_steps=4)
    plain = train(recipe, DATA, tmp_path / "plain", rhythm=Rhythm(sample_every=0))
    watched = train(recipe, DATA, tmp_path / "watched", rhythm=Rhythm(sample_every=2))
    weights = load_file(plain)
    assert all(torch.equal(weights[key], value) for key, value in load_file(watched).items())
    assert not (tmp_path / "plain" / "samples").exists()
    grids = sorted((tmp_path / "watched" / "samples").iterdir())
    assert [path.name for path in grids] == ["00000002.png", "00000004.png"]
    pictures = [np.asarray(Image.open(path)) for path in grids]
    side = SIZE * GRID_SCALE
    assert pictures[0].shape == (GRID_ROWS * side, GRID_COLUMNS * side, 3)
    scores = lines(tmp_path / "watched" / "scores.jsonl")
    assert [score["step"] for score in scores] == [2, 4]
    assert all(score["quick_fd"] > 0 for score in scores)


@pytest.mark.parametrize("method", ["edm", "ct"])
def test_an_untrained_network_samples_its_skip_connection(method: str) -> None:
    """A fresh network is zero: f = c_skip x_t in one step, D = c_skip x_t in Heun's method."""
    training = Training(tiny_recipe(method, dropout=0.0), 0, micro_batch=100)
    images = draw_samples(training, SIZE)
    assert images.shape == (NUM_SAMPLES, SIZE, SIZE, 3)
    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(NUM_SAMPLES, 3, SIZE, SIZE, generator=generator)

    def skip(x: torch.Tensor, t: float) -> torch.Tensor:
        shift = 0.002 if method == "ct" else 0.0
        return (0.25 / ((t - shift) ** 2 + 0.25) * x).clamp(-1, 1)

    if method == "ct":
        x = skip(x, 80.0)
    else:
        times = [*karras_times(10).tolist(), 0.0]
        for t, s in pairwise(times):
            slope = (x - skip(x, t)) / t
            euler = x + (s - t) * slope
            x = x + (s - t) * (slope + (euler - skip(euler, s)) / s) / 2 if s else euler
    expected = (x * 127.5 + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    # A value within float32 rounding of a half may fall on either side.
    difference = np.abs(images.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_the_quick_score_tells_images_from_noise() -> None:
    """It is 0 for the data themselves, and larger for noise than for other such images."""
    data = synthetic(100, 32)
    score = QuickScore(data, torch.device("cpu"))
    noise = np.random.default_rng(0).integers(0, 256, data.images.shape, dtype=np.uint8)
    assert abs(score(data.images)) < 1e-6 * score(noise)  # rounding of float64
    assert score(synthetic(100, 32, seed=1).images) < 0.5 * score(noise)
