"""Several processes train as one does: the same images, noise and times, the same weights."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from test_training_state import processes
from tiny import state_names, state_of
from tiny_run import tiny_run, tiny_run_of_several

from cmrepro.checkpoints.io import read_info
from cmrepro.training.state import state_files

pytestmark = pytest.mark.usefixtures("networks")

__all__ = ["processes"]  # the fixture

# Sums over images in another order round otherwise, by 2^-24 of moments below 1 a step; after 12
# steps the weights differed by 3e-7, the moments by 8e-8.
TOLERANCE = 1e-5


def together(processes: Any, num_processes: int, run: dict[str, Any]) -> None:
    """Run a training in several processes of this machine."""
    meeting = f"{run['out']}.{num_processes}.meeting"
    workers = [
        processes.Process(target=tiny_run_of_several, args=(rank, num_processes, meeting, run))
        for rank in range(num_processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def assert_close(first: pathlib.Path, second: pathlib.Path) -> None:
    """All weights, averages and moments of the newest states, to `TOLERANCE`."""
    states = [state_of(path) for path in (first, second)]
    assert states[0]["step"] == states[1]["step"]
    for key in ("online", "target", "ema"):
        for name, tensor in states[0][key].items():
            torch.testing.assert_close(states[1][key][name], tensor, rtol=0, atol=TOLERANCE)
    for index, moments in states[0]["optimizer"]["state"].items():
        for name, tensor in moments.items():
            other = states[1]["optimizer"]["state"][index][name]
            torch.testing.assert_close(other, tensor, rtol=0, atol=TOLERANCE)


# Muon moves the weights along rounding where a gradient vanishes.
RADAM = {"optimizer": "radam", "learning_rate": 1e-3}
RUNS = [
    ("edm", {"batch_size": 4}),
    ("ct", {"batch_size": 7, "num_gpus": 3}),  # indivisible, and added up in each process
    pytest.param("cd", {"batch_size": 4, "target_ema": 0.5}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "changes"), RUNS)
def test_two_and_three_processes_train_as_one(
    tmp_path: pathlib.Path, processes: Any, teacher: pathlib.Path, method: str, changes: Any
) -> None:
    """And one continues where three stopped."""
    changes = {"dropout": 0.0, "total_steps": 12, **RADAM, **changes}
    if method != "edm":
        changes["schedule_steps"] = 12
    settings = {"teacher": teacher} if method == "cd" else {}
    run = {"method": method, "changes": changes, **settings}
    tiny_run(**run, out=str(tmp_path / "1"))
    together(processes, 2, {**run, "out": str(tmp_path / "2")})
    assert_close(tmp_path / "1", tmp_path / "2")
    trained = read_info(tmp_path / "2" / f"demo-cifar10-{method}.safetensors").training
    assert trained and trained.num_processes == 2
    half = {**run, "changes": {**changes, "total_steps": 6}, "out": str(tmp_path / "legs")}
    together(processes, 3, half)
    assert state_names(tmp_path / "legs") == ["state-00000006.pt"]
    tiny_run(**{**run, "out": str(tmp_path / "legs")}, resume=True)
    assert_close(tmp_path / "1", tmp_path / "legs")


def torchrun(run: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    """Start a tiny training under torchrun."""
    script = str(pathlib.Path(__file__).with_name("tiny_run.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options, script]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # needed for restarts
    return subprocess.Popen(
        [*command, json.dumps(run)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_restarts_and_resumes_when_a_process_dies(tmp_path: pathlib.Path) -> None:
    """In three processes; one dies after step 7, with states of every second step."""
    run: dict[str, Any] = {"method": "ct"}
    run["changes"] = {**RADAM, "batch_size": 4, "dropout": 0.0, "total_steps": 12}
    run |= {"save_every": 2, "log_every": 1}
    tiny_run(**run, out=str(tmp_path / "1"))
    run |= {"out": str(tmp_path / "3"), "deaths": {"1": 7}, "resume": True}
    work = torchrun(run, "--nproc-per-node=3", "--max-restarts=1")
    _, errors = work.communicate()
    assert work.returncode == 0, errors
    assert_close(tmp_path / "1", tmp_path / "3")
    log = (tmp_path / "3" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [*range(1, 13)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_ends_all(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    run: dict[str, Any] = {"method": "ct"}
    run["changes"] = {"batch_size": 4, "total_steps": 100_000}
    work = torchrun({**run, "save_every": 50, "out": str(out)}, "--nproc-per-node=2")
    while not state_files(out):
        assert work.poll() is None
        time.sleep(0.1)
    work.send_signal(number)
    _, errors = work.communicate()
    assert work.returncode != 0
    assert f"saved at step {state_of(out)['step']}; continue with --resume" in errors
