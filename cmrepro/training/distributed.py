"""What the processes of a training share and agree on; a single one communicates nothing."""

import torch
from torch import Tensor, distributed

from cmrepro.processes import process


def share(count: int, rank: int, num_processes: int) -> slice:
    """Rows of a batch of `count` that a process takes; the shares differ by one row at most."""
    return slice(count * rank // num_processes, count * (rank + 1) // num_processes)


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
