"""Noise and classes of images, functions of (seed, i) alone; noise made in threads ahead."""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.distributed import thread_pool

TASK_IMAGES = 16  # whose noise a thread makes at once


def _generator(seed: int, i: int, counter: int = 0) -> np.random.Generator:
    """Counter-based stream of image i."""
    key = np.array([seed, i], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def fill_noise(z: NDArray[np.float32], seed: int, indices: Sequence[int]) -> bytes:
    """Fill z (B, S, C, H, W) with S draws of standard normal noise of B images.

    Returns B S digests, 32 bytes each: SHA-256 of an image's noise up to each draw, which later
    draws do not change.
    """
    digests = []
    for i, draws in zip(indices, z, strict=True):
        _generator(seed, i).standard_normal(out=draws, dtype=np.float32)
        digest = hashlib.sha256()
        for draw in draws:
            digest.update(draw)
            digests.append(digest.copy().digest())
    return b"".join(digests)


def noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Noise (S, B, C, H, W), float32, of B images by their indices; `shape` is (S, C, H, W)."""
    z = np.empty((len(indices), *shape), np.float32)
    fill_noise(z, seed, indices)
    return torch.from_numpy(z).transpose(0, 1)


def noise_blocks(
    seed: int, blocks: Iterable[range], shape: tuple[int, ...], pinned: bool
) -> Iterator[tuple[Tensor, bytes]]:
    """Noise of each block and its digests, as of `fill_noise`, made while another is sampled.

    `pinned` memory is copied to "cuda" without waiting. `shape` is (S, C, H, W).
    """
    pool, _ = thread_pool()

    def start(block: range) -> tuple[Tensor, list[Future[bytes]]]:
        z = torch.empty((len(block), *shape), pin_memory=pinned)
        parts = [slice(i, i + TASK_IMAGES) for i in range(0, len(block), TASK_IMAGES)]
        return z, [pool.submit(fill_noise, z[i].numpy(), seed, block[i]) for i in parts]

    waiting = map(start, blocks)
    started = deque(itertools.islice(waiting, 1))
    while started:
        started.extend(itertools.islice(waiting, 1))
        z, tasks = started.popleft()
        yield z, b"".join(task.result() for task in tasks)


def class_labels(seed: int, indices: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Class of each image (N,), uniform as in the official code, a function of (seed, i) alone."""
    counter = 1 << 128  # independent of the noise, whose counters never get this far
    return np.array([_generator(seed, i, counter).integers(num_classes) for i in indices])
