"""Input of a training step: images, flips, noise and times.

It depends on (seed, step, position in the global batch) alone, so resumed runs and any number of
processes see the same global batches.
"""

import functools
import math
import operator
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.data import ImageSource
from cmrepro.distributed import shard
from cmrepro.settings import Recipe
from cmrepro.training.methods import METHODS

MAX_SEED = 1 << 32
# Values of noise from one generator: a process draws only the blocks that its shard touches, not
# the whole batch, which for 2,048 images of 256x256 pixels is 400 million values a step.
NOISE_BLOCK = 1 << 22
PREFETCHED = 2  # batches prepared ahead; one more than needed evens out slow reads


class Batch(NamedTuple):
    """A process's shard of one step's global batch, or a part of it."""

    images: Tensor  # (B, 3, H, W) uint8, channels_last, flipped at random
    z: Tensor  # (B, 3, H, W) float32, standard normal
    t: Tensor  # (B,) float32, times
    s: Tensor  # (B,) float32, their neighbours, s < t
    labels: Tensor | None  # (B,) int64

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with a function applied to each tensor."""
        images, z, t, s = map(function, self[:4])
        return Batch(images, z, t, s, None if self.labels is None else function(self.labels))

    def parts(self, size: int) -> "list[Batch]":
        """The batch in parts of `size` images; the last one may be smaller."""
        firsts = range(0, len(self.images), size)
        return [self.map(operator.itemgetter(slice(i, i + size))) for i in firsts]


class BatchSource:
    """The batches of a recipe on a data set: epochs of permutations that the seed fixes."""

    # Prepared beside the training, so without PyTorch's threads: numpy and serial generators.
    def __init__(
        self, dataset: ImageSource, recipe: Recipe, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset, self.recipe, self.seed = dataset, recipe, seed
        self.rows = shard(recipe.batch_size, rank, world_size)

    def batch(self, step: int) -> Batch:
        """This process's shard of the batch of a step."""
        recipe, rows, num_images = self.recipe, self.rows, self.dataset.num_images
        positions = step * recipe.batch_size + np.arange(rows.start, rows.stop)
        epochs, offsets = np.divmod(positions, num_images)
        orders = {n: epoch_order(self.seed, n, num_images) for n in np.unique(epochs).tolist()}
        indices = np.concatenate([orders[n][offsets[epochs == n]] for n in orders])
        images = self.dataset.take(indices)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, 2 * step + 1))
        if recipe.horizontal_flip:
            flipped = (torch.rand(recipe.batch_size, generator=generator) < 0.5).numpy()[rows]
            images[flipped] = images[flipped, :, ::-1]
        z = self._noise(step, (3, *images.shape[1:3]), generator)
        t, s = METHODS[recipe.method].draw_times(recipe, step, generator)
        numbers = self.dataset.labels
        labels = None if numbers is None else torch.from_numpy(numbers[indices])
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), z, t[rows], s[rows], labels)

    def _noise(self, step: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise of this process's images; that of the first block comes from `generator`."""
        count, start, stop = self.recipe.batch_size, self.rows.start, self.rows.stop
        size = max(NOISE_BLOCK // math.prod(shape), 1)  # images a block
        parts = [torch.randn(min(size, count), *shape, generator=generator)[start:stop]]
        for block in range(max(start // size, 1), -(-stop // size)):
            offset = block * size
            key = np.array([self.seed, (step << 24) + block], np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key))
            z = rng.standard_normal((min(size, count - offset), *shape), np.float32)
            parts.append(torch.from_numpy(z[max(start - offset, 0) : stop - offset]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def prefetched(source: BatchSource, steps: range, device: torch.device) -> Generator[Batch]:
    """The batches of `steps`, prepared by another thread, in pinned memory for an accelerator."""

    def prepare(step: int) -> Batch:
        batch = source.batch(step)
        return batch if device.type == "cpu" else batch.map(Tensor.pin_memory)

    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        for step in steps:
            waiting.append(thread.submit(prepare, step))
            if len(waiting) > PREFETCHED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@functools.lru_cache(2)  # a batch may span two epochs
def epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    """Order of the images in an epoch."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, 2 * epoch))  # even; steps are odd
    return torch.randperm(num_images, generator=generator).numpy()


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a process's dropout masks at a step: no other randomness depends on the rank."""
    # The odd factor keeps the numbers of up to 1,024 processes three million steps apart.
    return mixed_seed(seed, step + rank * 0x85EBCA77)


def mixed_seed(seed: int, number: int) -> int:
    """A seed of 32 bits, the most that torch's CPU generator takes (it drops higher bits)."""
    # Numbers count up; the odd factor, 2^32 over the golden ratio, keeps the seeds' ranges apart.
    return (seed * 0x9E3779B1 + number) % (1 << 32)
