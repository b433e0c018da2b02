"""Processes started by `torchrun`: their group, shards of work, collectives."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the processes of `torchrun`, each with its own "cuda"; the rank, 0 without them."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield 0
        return
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Restarted processes would find the dead ones' addresses in the store that torchrun
        # shares with them: https://github.com/pytorch/pytorch/issues/135712
        needed = "torchrun itself is started with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        raise ValueError(f"got --max-restarts={restarts}, allowed only where {needed}")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend)
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without a process group."""
    is_group = distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if is_group else (0, 1)


def thread_pool() -> tuple[ThreadPoolExecutor, int]:
    """Threads of this process, its share of the cores, and their number."""
    return _thread_pool(os.getpid())  # threads do not survive a fork


@functools.cache
def _thread_pool(process: int) -> tuple[ThreadPoolExecutor, int]:
    cores = len(os.sched_getaffinity(0))
    num_threads = max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))
    return ThreadPoolExecutor(num_threads, f"cmrepro-{process}"), num_threads


def shard(count: int, rank: int, world_size: int) -> slice:
    """Contiguous part of `count` items for one process; sizes differ by one at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def gather(part: Any) -> list[Any]:
    """Objects of all processes in the order of their ranks, at rank 0; [] elsewhere."""
    rank, world_size = rank_and_world_size()
    parts = [part] * world_size if rank == 0 else []
    if distributed.is_initialized():
        distributed.gather_object(part, parts or None)
    return parts


def scatter(parts: Sequence[Any]) -> Any:
    """One of rank 0's `parts` for each process in the order of their ranks; None where it ends."""
    rank, world_size = rank_and_world_size()
    padded = [*parts, *[None] * (world_size - len(parts))]
    part = padded[:1]
    if world_size > 1:
        distributed.scatter_object_list(part, padded if rank == 0 else None, src=0)
    return part[0]


def all_reduce_mean(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value / rank_and_world_size()[1]


def all_reduce_max(value: int) -> int:
    """Maximum of a number over all processes."""
    tensor = torch.tensor(value)
    if distributed.is_initialized():
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return int(tensor)


def broadcast(value: Any) -> Any:
    """Object of rank 0, in all processes."""
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Temporary folder of rank 0, which the processes of one machine share."""
    with tempfile.TemporaryDirectory(prefix="cmrepro-") as folder:
        yield Path(broadcast(folder))
