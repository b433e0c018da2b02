"""The processes of `torchrun`: joined and left by a command, what they share and agree on."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed


@contextlib.contextmanager
def joined_processes() -> Iterator[int]:
    """Join the processes that `torchrun` started; gives this one's number, 0 without `torchrun`.

    On accelerators each process uses the one of its local number as "cuda".

    Raises:
        ValueError: `torchrun` may start processes again, but in a way that PyTorch fails at.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield 0
        return
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Processes started again would find the addresses of the dead ones in the store that
        # torchrun keeps for them: https://github.com/pytorch/pytorch/issues/135712
        raise ValueError(
            f"got --max-restarts={restarts}; processes started again find one another only where "
            "torchrun itself is started with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def process() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) where none were joined."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def share(count: int, rank: int, num_processes: int) -> slice:
    """Which of `count` things in a row a process takes; the shares differ by one at most."""
    return slice(count * rank // num_processes, count * (rank + 1) // num_processes)


def gathered(part: Any) -> list[Any]:
    """The parts of all processes in their order, in the first; nothing in the others."""
    rank, world = process()
    if world == 1:
        return [part]
    parts: list[Any] | None = [None] * world if rank == 0 else None
    distributed.gather_object(part, parts)
    return parts or []


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, the same in each."""
    _, num_processes = process()
    if num_processes > 1:
        distributed.all_reduce(value)
        value = value / num_processes
    return value


def largest_of_processes(value: int) -> int:
    """The largest of the processes' values, known to each."""
    if process()[1] == 1:
        return value
    tensor = torch.tensor(value)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def of_first_process(value: str | None) -> str | None:
    """What process 0 has, in all."""
    if process()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
