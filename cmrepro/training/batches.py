"""What a training step sees: images, flips, noise and times.

All of it is a function of (seed, step, position in the global batch). So a resumed run sees what
an undisturbed one would have seen, and so do other numbers of processes together.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.data import TrainingImages
from cmrepro.distributed import shard
from cmrepro.settings import Recipe
from cmrepro.training.schedules import scales_and_mu

MAX_SEED = 1 << 32
# Values of noise from one generator: a process draws the blocks that its share touches, not the
# whole batch, which for 2,048 images of 256x256 pixels is 400 million values a step.
NOISE_BLOCK = 1 << 22
PREFETCHED = 2  # batches prepared ahead; one more than needed evens out slow reads


@dataclass(frozen=True)
class Batch:
    """A process's share of one step's global batch, or a part of it.

    Attributes:
        images: (B, 3, H, W) uint8, channels_last, flipped where the coin says so.
        z: (B, 3, H, W) float32, standard normal.
        draws: (B,), what the times come from: standard normal for EDM, else the index of an
            interval of the time grid, int64.
        labels: (B,) int64, or None.
    """

    images: Tensor
    z: Tensor
    draws: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, size: int) -> "list[Batch]":
        """The batch in parts of `size` images; the last one may be smaller."""
        labels = repeat(None) if self.labels is None else self.labels.split(size)
        columns = (self.images.split(size), self.z.split(size), self.draws.split(size), labels)
        return [Batch(*row) for row in zip(*columns, strict=False)]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy runs beside the computation."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        labels = None if self.labels is None else change(self.labels)
        return Batch(change(self.images), change(self.z), change(self.draws), labels)


class BatchSource:
    """The batches of a recipe on a data set: epochs of permutations that the seed fixes.

    What is prepared here runs beside the training, so it must not use PyTorch's threads: images
    are gathered and flipped by numpy, and random numbers come from serial generators.

    Args:
        dataset: Images and labels, of which a batch reads its own only.
        recipe: Says batch size, flips and what the times are drawn from.
        seed: Of permutations, flips, noise and times.
        rank: Number of this process.
        num_processes: How many share a batch.
    """

    def __init__(
        self,
        dataset: TrainingImages,
        recipe: Recipe,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.rows = shard(recipe.batch_size, rank, num_processes)
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        """This process's share of the batch of a step.

        Raises:
            ValueError: An image cannot be decoded.
        """
        recipe, rows = self.recipe, self.rows
        numbers = self._image_numbers(step * recipe.batch_size)
        images = self.dataset.take(numbers)
        generator = seeded_generator(self.seed, step, "step")
        if recipe.horizontal_flip:
            flipped = (torch.rand(recipe.batch_size, generator=generator) < 0.5).numpy()[rows]
            images[flipped] = images[flipped, :, ::-1]
        z = self._noise(step, (3, *images.shape[1:3]), generator)
        if recipe.method == "edm":
            draws = torch.randn(recipe.batch_size, generator=generator)
        else:
            intervals = scales_and_mu(recipe, step)[0] - 1
            draws = torch.randint(intervals, (recipe.batch_size,), generator=generator)
        # After the images: one that is left out has got the label of its substitute then.
        labels = self.dataset.labels
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            z,
            draws[rows],
            None if labels is None else torch.from_numpy(labels[numbers]),
        )

    def _image_numbers(self, first: int) -> NDArray[np.int64]:
        """Numbers of this process's images in the batch that starts at a position of the run."""
        numbers: list[NDArray[np.int64]] = []
        position, stop = first + self.rows.start, first + self.rows.stop
        while position < stop:
            epoch, offset = divmod(position, self.dataset.num_images)
            if epoch != self._epoch:
                generator = seeded_generator(self.seed, epoch, "epoch")
                self._order = torch.randperm(self.dataset.num_images, generator=generator).numpy()
                self._epoch = epoch
            numbers.append(self._order[offset : offset + stop - position])
            position += len(numbers[-1])
        return np.concatenate(numbers)

    def _noise(self, step: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise of this process's images; that of the first block comes from `generator`."""
        count, start, stop = self.recipe.batch_size, self.rows.start, self.rows.stop
        size = max(NOISE_BLOCK // math.prod(shape), 1)  # images a block
        first = torch.randn(min(size, count), *shape, generator=generator)
        parts = [first[start:stop]]
        for block in range(max(start // size, 1), -(-stop // size)):
            offset = block * size
            key = np.array([self.seed, (step << 24) + block], np.uint64)
            z = np.random.Generator(np.random.Philox(key=key)).standard_normal(
                (min(size, count - offset), *shape), np.float32
            )
            parts.append(torch.from_numpy(z[max(start - offset, 0) : stop - offset]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def prefetched(source: BatchSource, steps: range, device: torch.device) -> Generator[Batch]:
    """The batches of `steps` in order, prepared in another thread while earlier ones are used.

    Args:
        source: Of the batches.
        steps: Which.
        device: Where they will go; for an accelerator they lie in page-locked memory.
    """

    def prepare(step: int) -> Batch:
        batch = source.batch(step)
        return batch if device.type == "cpu" else batch.pinned()

    thread = ThreadPoolExecutor(1, "batches")
    waiting: deque[Future[Batch]] = deque()
    try:
        for step in steps:
            waiting.append(thread.submit(prepare, step))
            if len(waiting) > PREFETCHED:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def seeded_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A generator that depends on (seed, step, purpose) alone."""
    stream = {"epoch": 0, "step": 1}[purpose]
    return torch.Generator().manual_seed(mixed_seed(seed, (step << 1) + stream))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout masks of a process at a step: the only randomness that knows processes.

    The odd factor keeps the numbers of up to 1,024 processes three million steps apart.
    """
    return mixed_seed(seed, step + rank * 0x85EBCA77)


def mixed_seed(seed: int, number: int) -> int:
    """A seed of 32 bits, all that torch's generator takes on the CPU (it drops higher ones).

    Numbers count up; the odd factor, 2^32 over the golden ratio, keeps the seeds' ranges apart.
    """
    return (seed * 0x9E3779B1 + number) % (1 << 32)
