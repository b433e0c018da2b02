"""States: killed, torn, damaged, full disks; and which of them are kept."""

import errno
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import DATA, tiny_networks, tiny_recipe
from tiny_run import MOMENTS, tiny_run, tiny_run_that_dies

from cmrepro import files
from cmrepro.checkpoints import io as checkpoint_files
from cmrepro.training import state
from cmrepro.training.loop import Rhythm, train
from cmrepro.training.state import newest_state, state_files


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


EDM = tiny_recipe("edm", total_steps=8)
SAVES = Rhythm(save_every=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run of 8 steps."""
    return load_file(train(EDM, DATA, tmp_path_factory.mktemp("whole")))


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the states of steps 4 and 6."""
    folder = tmp_path / "run"
    train(tiny_recipe("edm", total_steps=6), DATA, folder, rhythm=SAVES)
    assert names(folder) == ["state-00000004.pt", "state-00000006.pt"]
    return folder


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in state_files(folder))


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


DAMAGES = [
    cut,
    flip_a_bit,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"text"),
    lambda path: path.write_bytes(pickle.dumps({"recipe": {}}, protocol=2)),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_is_noticed_and_the_one_before_is_used(
    run: pathlib.Path,
    whole: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[pathlib.Path], object],
) -> None:
    newest, before = state_files(run)
    damage(newest)
    damaged = newest.read_bytes()
    path = train(EDM, DATA, run, resume=True, keep=1)
    assert f"{newest} is cut off or damaged; going on from {before}\n" in capsys.readouterr().err
    weights = load_file(path)
    assert all(torch.equal(weights[key], whole[key]) for key in whole)
    assert names(run) == ["state-00000008.pt"]
    assert (run / f"{newest.name}.damaged").read_bytes() == damaged  # put aside, not deleted


@pytest.mark.parametrize("damage", DAMAGES)
def test_states_that_are_all_damaged_are_refused(
    run: pathlib.Path, damage: Callable[[pathlib.Path], object]
) -> None:
    for path in state_files(run):
        damage(path)
    before = contents(run)
    with pytest.raises(ValueError, match=r"state-00000006.pt.*4.pt: cut off, damaged or no") as e:
        train(EDM, DATA, run, resume=True)
    assert "\n" not in str(e.value)
    assert contents(run) == before


@pytest.mark.parametrize("stored", [torch.zeros(3), {"weights": torch.zeros(3)}])
def test_a_whole_file_that_is_no_state_is_refused(run: pathlib.Path, stored: Any) -> None:
    """It is not damaged, so that something is wrong that going on from another would hide."""
    torch.save(stored, run / "state-00000007.pt")
    before = contents(run)
    with pytest.raises(ValueError, match=r"state-00000007.pt is cut off or no training state"):
        train(EDM, DATA, run, resume=True)
    assert contents(run) == before


def test_no_changed_byte_passes(run: pathlib.Path) -> None:
    """A state with one is refused, or (in padding) is the same state."""
    path, _ = state_files(run)
    data = path.read_bytes()
    weights = torch.load(path, weights_only=True)["online"]
    generator = random.Random(0)
    parts = [(0, 60), (0, len(data)), (len(data) - 2000, len(data))]  # the last is its directory
    for position in (generator.randrange(*part) for part in parts * 8):
        changed = bytearray(data)
        changed[position] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        if newest_state(run)[0] == path:
            loaded = torch.load(path, weights_only=True)["online"]
            assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize("keep", [1, 3, 10])
def test_the_last_states_are_kept(tmp_path: pathlib.Path, keep: int) -> None:
    train(EDM, DATA, tmp_path, rhythm=SAVES, keep=keep)
    assert names(tmp_path) == [f"state-{step:08d}.pt" for step in (2, 4, 6, 8)][-keep:]


def test_a_state_of_an_earlier_version_goes_on(
    run: pathlib.Path, whole: dict[str, torch.Tensor]
) -> None:
    """There was one, state.pt, without precision, scale and checksums of data and teacher."""
    newest, before = state_files(run)
    stored = torch.load(newest, weights_only=True)
    torch.save({k: v for k, v in stored.items() if k not in NEW}, run / "state.pt")
    newest.unlink()
    before.unlink()
    weights = load_file(train(EDM, DATA, run, resume=True, keep=1))
    assert all(torch.equal(weights[key], whole[key]) for key in whole)
    assert names(run) == ["state-00000008.pt"]


NEW = ("precision", "scaler", "origin")


class NearlyFull(io.FileIO):
    """A file on a disk with half a megabyte left."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_gets_full_leaves_the_files_before_it(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run)
    monkeypatch.setattr(state, "open", NearlyFull, raising=False)
    with pytest.raises(ValueError, match=r"cannot write .*8.pt: no space left") as caught:
        train(EDM, DATA, run, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(run) == before


def test_a_full_disk_leaves_the_files_before_it(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States are written into /dev/full, the device that has no space."""
    original = files.tempfile.mkstemp

    def full(prefix: str, suffix: str, dir: pathlib.Path) -> tuple[int, str]:
        handle, name = original(prefix=prefix, suffix=suffix, dir=dir)
        if suffix == ".pt":
            os.unlink(name)
            os.symlink("/dev/full", name)
        return handle, name

    before = contents(run)
    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    with pytest.raises(ValueError, match=r"cannot write .*8.pt: no space left") as caught:
        train(EDM, DATA, run, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(run) == before


def test_a_disk_that_is_full_after_the_state_leaves_the_checkpoint_before_it(
    run: pathlib.Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, torch.Tensor]
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    before = contents(run)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", full)
        with pytest.raises(ValueError, match=r"cannot write .*edm.safetensors .*No space left"):
            train(EDM, DATA, run, resume=True)
    after = contents(run)
    assert names(run)[-1] == "state-00000008.pt"
    checkpoint = "demo-cifar10-edm.safetensors"
    assert after[checkpoint] == before[checkpoint]
    weights = load_file(train(EDM, DATA, run, resume=True))  # the state has it all
    assert all(torch.equal(weights[key], whole[key]) for key in whole)


def test_what_a_killed_process_was_writing_is_removed(run: pathlib.Path) -> None:
    orphans = [".state-00000008.pt.abc.pt", ".demo-cifar10-edm.safetensors.x1.safetensors"]
    orphans += [".tmpsANVfH"]
    for name in orphans:
        (run / name).write_bytes(b"part")
    (run / ".hidden").write_bytes(b"kept")
    train(EDM, DATA, run, resume=True)
    assert {path.name for path in run.glob(".*")} == {".hidden"}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes that find everything imported already, so that a run starts at once."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the server that imports it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run", "torch._dynamo"])  # the latter is for DDP
    return context


def finished(process: Any) -> int:
    """Exit code of a process; negative for a signal."""
    process.start()
    process.join()
    return process.exitcode


def killed_after_a_save(process: Any, folder: pathlib.Path, seconds: float) -> int:
    """Exit code of a process that is killed some seconds after its first save in a folder."""
    before = names(folder)
    process.start()
    while process.is_alive() and names(folder) == before:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes"), [("ct", {}), ("edm", {"mixed_precision": True})])
def test_a_run_killed_at_20_random_moments_ends_as_an_undisturbed_one(
    tmp_path: pathlib.Path, processes: Any, method: str, changes: dict[str, Any]
) -> None:
    """Ten at random times, ten at random calls of steps and at every stage of a save."""
    generator = random.Random(1)
    settings = {"method": method, "changes": {**changes, "total_steps": 160}}
    settings["rhythm"] = {"save_every": 1, "log_every": 1}
    start = time.monotonic()
    tiny_run(**settings, out=str(tmp_path / "whole"))
    step_s = (time.monotonic() - start) / 160
    run = {**settings, "out": str(tmp_path / "killed")}
    moments = [*MOMENTS] * 2 + ["time"] * 10
    generator.shuffle(moments)
    killed_while_saving, reached = 0, []
    for moment in moments:
        run["resume"] = bool(state_files(tmp_path / "killed"))
        if moment == "time":
            process = processes.Process(target=tiny_run, kwargs=run)
            code = killed_after_a_save(
                process, tmp_path / "killed", generator.uniform(0, 5 * step_s)
            )
        else:
            where = (moment, generator.randrange(1, 8), generator.random() < 0.5)
            process = processes.Process(target=tiny_run_that_dies, args=(*where, run))
            code = finished(process)
        assert code == -signal.SIGKILL, moment
        killed_while_saving += bool(list((tmp_path / "killed").glob(".*")))
        reached.append(int(names(tmp_path / "killed")[-1][6:14]) if run["resume"] else 0)
    assert reached == sorted(reached)
    assert 3 <= reached[-1] < 160
    assert killed_while_saving >= 3
    assert finished(processes.Process(target=tiny_run, kwargs={**run, "resume": True})) == 0
    folders = [tmp_path / part for part in ("whole", "killed")]
    whole, killed = (load_file(path / f"demo-cifar10-{method}.safetensors") for path in folders)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
    assert names(folders[0]) == names(folders[1])
    logs = [(path / "log.jsonl").read_text().splitlines() for path in folders]
    steps = [[json.loads(line)["step"] for line in lines] for lines in logs]
    assert steps == [list(range(1, 161))] * 2
    assert not list(folders[1].glob(".*"))
