"""States: killed, torn, damaged, full disks; and which of them are kept."""

import errno
import io
import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import assert_equal, state_names, tiny_recipe, tiny_train
from tiny_run import tiny_run

from cmrepro.checkpoints.io import read_info
from cmrepro.data import synthetic
from cmrepro.training import state
from cmrepro.training.state import state_files

pytestmark = pytest.mark.usefixtures("networks")

EDM = tiny_recipe("edm", total_steps=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run of 8 steps."""
    return load_file(tiny_train(EDM, tmp_path_factory.mktemp("whole")))


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the states of steps 4 and 6."""
    tiny_train(EDM.replace(total_steps=6), tmp_path / "run", save_every=2)
    assert state_names(tmp_path / "run") == ["state-00000004.pt", "state-00000006.pt"]
    return tmp_path / "run"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: pathlib.Path) -> None:
    """In a weight, which PyTorch itself would load."""
    data = bytearray(path.read_bytes())
    bias = torch.load(path, weights_only=True)["ema"]["network.out.2.bias"].clone()
    position = data.find(bias.numpy().tobytes())
    assert position > 0
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_state_is_refused_and_the_one_before_is_used_without_it(
    run: pathlib.Path,
    whole: dict[str, torch.Tensor],
    damage: Callable[[pathlib.Path], object],
) -> None:
    newest, _ = state_files(run)
    damage(newest)
    before = contents(run)
    with pytest.raises(ValueError, match=f"{newest} is damaged; delete it"):
        tiny_train(EDM, run, resume=True)
    assert contents(run) == before
    newest.unlink()
    assert_equal(load_file(tiny_train(EDM, run, resume=True)), whole)


@pytest.mark.parametrize(
    ("method", "changes", "settings", "message"),
    [
        ("edm", {"learning_rate": 1e-4}, {}, "learning_rate is 0.008, not 0.0001"),
        ("edm", {}, {"seed": 1}, "seed is 0, not 1"),
        ("edm", {}, {"data": synthetic(10, 8, seed=1)}, "dataset_sha256 is "),
        ("ct", {}, {}, "name is 'demo-cifar10-edm', not 'demo-cifar10-ct'"),
    ],
)
def test_resuming_into_another_run_is_refused(
    run: pathlib.Path, method: str, changes: Any, settings: Any, message: str
) -> None:
    before = contents(run)
    with pytest.raises(ValueError) as caught:
        tiny_train(tiny_recipe(method, **changes), run, **settings, resume=True)
    assert message in str(caught.value)
    assert contents(run) == before


def test_a_run_cannot_be_continued_with_another_teacher_or_schedule(
    tmp_path: pathlib.Path,
) -> None:
    teachers = [tiny_train(EDM, tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    recipe = tiny_recipe("cd", total_steps=1, linear_decay_share=0.5)
    tiny_train(recipe, tmp_path / "cd", teacher=teachers[0])
    for other, teacher, message in [
        (recipe, teachers[1], "teacher_sha256 is "),
        (
            recipe.replace(schedule_steps=2),
            teachers[0],
            "schedule_steps is 1.*leave it out",
        ),
        (
            recipe.replace(total_steps=3),
            teachers[0],
            "total_steps is 1.*linear_decay_share",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny_train(other, tmp_path / "cd", teacher=teacher, resume=True)


def test_a_longer_run_keeps_its_schedule(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """K of N(k) is 6 for all of the 9 steps, as if the run had begun with schedule_steps = 6."""
    whole = tiny_train(tiny_recipe("ct", total_steps=9, schedule_steps=6), tmp_path / "whole")
    tiny_train(tiny_recipe("ct", total_steps=6), tmp_path / "legs")
    assert "schedule_steps" not in capsys.readouterr().err
    longer = tiny_train(tiny_recipe("ct", total_steps=9), tmp_path / "legs", resume=True)
    assert "continue with schedule_steps = 6" in capsys.readouterr().err
    assert_equal(load_file(longer), load_file(whole))
    found = read_info(longer)
    assert found.recipe is not None
    assert found.recipe.schedule_steps == 6
    assert found.two_step_time == read_info(whole).two_step_time


def test_a_folder_in_use_is_refused(run: pathlib.Path) -> None:
    """Also where only the checkpoint is left, which --resume does not replace either."""
    before = contents(run)
    with pytest.raises(ValueError, match=r"edm.safetensors is there already.*--resume"):
        tiny_train(EDM, run)
    with pytest.raises(ValueError, match=r"log.jsonl|state-"):
        tiny_train(EDM, run, name="other")
    assert contents(run) == before
    for path in state_files(run):
        path.unlink()
    with pytest.raises(ValueError, match=r"edm.safetensors is there already"):
        tiny_train(EDM, run, resume=True)


@pytest.mark.parametrize("log", [None, '{"step": 1, "loss": 9}\n{"st'])
def test_resuming_without_a_state_starts_with_the_first_step(
    tmp_path: pathlib.Path,
    whole: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    log: str | None,
) -> None:
    """In an empty folder, and in that of a run killed before its first save."""
    if log:
        (tmp_path / "log.jsonl").write_text(log)
        (tmp_path / ".state-00000001.pt.x.pt").write_bytes(b"part")
    assert_equal(load_file(tiny_train(EDM, tmp_path, resume=True)), whole)
    assert f"no state in {tmp_path}; starting with the first step" in capsys.readouterr().err
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 8]
    assert entries[0]["loss"] < 9


class NearlyFull(io.FileIO):
    """A file on a disk with half a megabyte left."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_leaves_the_files_before_it(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    monkeypatch.setattr(state, "open", NearlyFull, raising=False)
    with pytest.raises(ValueError, match=r"cannot write .*8.pt: no space left"):
        tiny_train(EDM, run, resume=True)
    assert {**contents(run), "log.jsonl": before["log.jsonl"]} == before  # its last step is there


def test_unfinished_files_of_a_killed_process_are_removed(run: pathlib.Path) -> None:
    unfinished = [".state-00000008.pt.abc.pt", ".demo-cifar10-edm.safetensors.x1.safetensors"]
    for name in [*unfinished, ".tmpsANVfH"]:
        (run / name).write_bytes(b"part")
    (run / ".hidden").write_bytes(b"")
    tiny_train(EDM, run, resume=True)
    assert {path.name for path in run.glob(".*")} == {".hidden"}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes that find everything imported already, so that a run starts at once."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the server that imports it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run", "torch._dynamo"])  # the latter is for DDP
    return context


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes"), [("ct", {}), ("edm", {"mixed_precision": True})])
def test_a_run_killed_at_20_random_moments_ends_as_an_undisturbed_one(
    tmp_path: pathlib.Path, processes: Any, method: str, changes: dict[str, Any]
) -> None:
    """It saves after every step, so that many of the moments lie within a save."""
    generator = random.Random(1)
    settings = {"method": method, "changes": {**changes, "total_steps": 160}}
    settings |= {"save_every": 1, "log_every": 1}
    start = time.monotonic()
    tiny_run(**settings, out=str(tmp_path / "whole"))
    step_s = (time.monotonic() - start) / 160
    killed = tmp_path / "killed"
    run = {**settings, "out": str(killed), "resume": True}
    killed_while_saving, reached = 0, []
    for _ in range(20):
        before = state_names(killed)
        process = processes.Process(target=tiny_run, kwargs=run)
        process.start()
        while process.is_alive() and state_names(killed) == before:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 5 * step_s))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_while_saving += bool(list(killed.glob(".*")))
        reached.append(int(state_names(killed)[-1][6:14]))
    assert reached == sorted(reached)
    assert 20 <= reached[-1] < 160
    assert killed_while_saving >= 3
    tiny_run(**run)
    name = f"demo-cifar10-{method}.safetensors"
    assert_equal(load_file(killed / name), load_file(tmp_path / "whole" / name))
    assert state_names(killed) == state_names(tmp_path / "whole")
    log = (killed / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 161))
    assert not list(killed.glob(".*"))
