"""Functions run in several processes that know each other, as `torchrun` starts them."""

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed


def _run(rank: int, world: int, meeting: str, function: Callable[..., Any], arguments: Any) -> Any:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    try:
        return function(*arguments)
    finally:
        distributed.destroy_process_group()


def in_processes(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of a module gives in each of `world` processes on the CPU, one thread each.

    An error in one of them is raised here.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(world) as pool:
        calls = [
            pool.apply_async(_run, (rank, world, f"{folder}/meeting", function, arguments))
            for rank in range(world)
        ]
        return [call.get(timeout=300) for call in calls]
