"""Output of a run: log, last good state, previews."""

import json
import math
import pathlib
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import assert_equal, state_of, tiny_recipe, tiny_train

from cmrepro.consistency import losses

pytestmark = pytest.mark.usefixtures("networks")


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_holds_progress_and_schedules(tmp_path: pathlib.Path) -> None:
    """From the first step to the last, also where no line is due."""
    recipe = tiny_recipe("ct", mixed_precision=True)
    tiny_train(recipe, tmp_path, log_every=6)
    log = lines(tmp_path / "log.jsonl")
    assert [(entry["step"], entry["images"]) for entry in log] == [
        (1, 3), (6, 18), (12, 36), (18, 54), (20, 60)
    ]  # fmt: skip
    for entry in log:
        k = entry["step"] - 1  # the last step of the line; N(k) by Appendix C
        num_scales = math.ceil(math.sqrt(k / 20 * (11**2 - 2**2) + 2**2) - 1) + 1
        assert entry["num_scales"] == num_scales
        assert entry["mu"] == pytest.approx(math.exp(2 * math.log(0.9) / num_scales))
        # PyTorch's first, halved where a gradient overflowed; 20 steps do not raise it.
        assert entry["loss_scale"] in (65536, 32768, 16384)
    assert log[-1]["duration_s"] >= log[0]["duration_s"] >= 0


def test_a_distillation_logs_the_distance_to_the_teachers_trajectories(
    tmp_path: pathlib.Path,
) -> None:
    """At the first and last step and at each save; the dropout of training plays no part."""
    teacher = tiny_train(tiny_recipe("edm", total_steps=2), tmp_path / "teacher")
    tiny_train(tiny_recipe("cd", learning_rate=1e-9), tmp_path, teacher=teacher, save_every=8)
    found = {e["step"]: e for e in lines(tmp_path / "log.jsonl") if "ema_distances" in e}
    assert [*found] == [1, 8, 16, 20]
    first, last = (found[step]["online_distances"] for step in (1, 20))
    assert len(first) == 17 and next(iter(first)) == "80.0"
    assert [*last.values()] == pytest.approx([*first.values()], rel=1e-4)  # no rate, no change
    assert found[20]["ema_distances"] == pytest.approx(last, rel=1e-4)


def test_a_resumed_log_continues_at_the_state(tmp_path: pathlib.Path) -> None:
    """Lines beyond it and a torn one, as a killed run leaves them, are written again."""
    tiny_train(tiny_recipe("edm", total_steps=6), tmp_path, log_every=1)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"st')
    tiny_train(tiny_recipe("edm", total_steps=9), tmp_path, log_every=1, resume=True)
    assert [entry["step"] for entry in lines(tmp_path / "log.jsonl")] == [*range(1, 10)]


def test_a_loss_that_is_not_finite_stops_the_run_at_a_good_state(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, factors = losses.edm_loss, iter([1.0] * 12 + [math.nan])
    monkeypatch.setattr(losses, "edm_loss", lambda *args: next(factors) * original(*args))
    message = r"step 12 .*loss nan.*good state: .*state-00000010.pt; try a lower"
    with pytest.raises(FloatingPointError, match=message):
        tiny_train(tiny_recipe("edm"), tmp_path, save_every=5)
    assert all(w.isfinite().all() for w in state_of(tmp_path)["online"].values())


def test_previews_do_not_touch_the_run(tmp_path: pathlib.Path) -> None:
    recipe = tiny_recipe("ct", total_steps=4)
    plain = tiny_train(recipe, tmp_path / "plain", sample_every=0)
    watched = tiny_train(recipe, tmp_path / "watched", sample_every=2)
    assert_equal(load_file(watched), load_file(plain))
    assert not (tmp_path / "plain" / "samples").exists()
    grids = sorted((tmp_path / "watched" / "samples").iterdir())
    assert [path.name for path in grids] == ["00000002.png", "00000004.png"]
