"""Tiny trainings in processes of their own, to be killed or to work together.

As a program, also under `torchrun`: python tests/tiny_run.py '{"method": "ct", "out": FOLDER, …}'.
"""

import json
import os
import pathlib
import signal
import sys
from typing import Any
from unittest import mock

import torch
from tiny import tiny_networks, tiny_recipe, tiny_train
from torch import distributed

from cmrepro.distributed import process_group
from cmrepro.training.step import Training


def tiny_run(
    method: str, out: str, changes: dict[str, Any] | None = None, **settings: Any
) -> None:
    """Train a tiny recipe on one thread."""
    torch.set_num_threads(1)
    with tiny_networks():
        tiny_train(tiny_recipe(method, **(changes or {})), pathlib.Path(out), **settings)


def tiny_run_of_several(rank: int, num_processes: int, meeting: str, run: dict[str, Any]) -> None:
    """The same as one of several processes that meet in a file."""
    distributed.init_process_group(
        "gloo", f"file://{meeting}", rank=rank, world_size=num_processes
    )
    tiny_run(**run)
    distributed.destroy_process_group()


def killed_after(step: int) -> Any:
    """Kill this process after a step."""
    original = Training.update

    def update(training: Training) -> None:
        original(training)
        if training.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return mock.patch.object(Training, "update", update)


def main(text: str) -> None:
    """One of torchrun's processes; "deaths" says at which step which of them dies at first."""
    run = json.loads(text)
    deaths = run.pop("deaths", {})
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    with process_group() as rank:
        step = None if restarted else deaths.get(str(rank))
        if step is None:
            tiny_run(**run)
            return
        with killed_after(step):
            tiny_run(**run)


if __name__ == "__main__":
    main(sys.argv[1])
