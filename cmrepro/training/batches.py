"""Which images a training step sees, and where its randomness comes from: (seed, step) alone."""

import torch
from torch import Tensor

from cmrepro.datasets import ImageDataset

MAX_SEED = 1 << 32


class BatchSource:
    """Batches of a data set in an order that (seed, step) fixes: epochs of permutations.

    Args:
        dataset: Images and labels.
        batch_size: Images a step.
        horizontal_flip: Flip each with probability 1/2.
        seed: Of permutations and flips.
    """

    def __init__(
        self, dataset: ImageDataset, batch_size: int, horizontal_flip: bool, seed: int
    ) -> None:
        self.images = torch.from_numpy(dataset.images)
        self.labels = None if dataset.labels is None else torch.from_numpy(dataset.labels)
        self.batch_size = batch_size
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self.epoch = -1
        self.order = torch.empty(0, dtype=torch.int64)

    def _index(self, position: int) -> Tensor:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self.epoch:
            generator = seeded_generator(self.seed, epoch, "epoch")
            self.order, self.epoch = torch.randperm(len(self.images), generator=generator), epoch
        return self.order[offset]

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Images (B, 3, H, W) float32 in [-1, 1], channels_last, and labels (B,) of a step."""
        first = step * self.batch_size
        index = torch.stack([self._index(first + i) for i in range(self.batch_size)])
        x = self.images[index].permute(0, 3, 1, 2) / 127.5 - 1  # channels_last in memory
        if self.horizontal_flip:
            flip = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
        return x, None if self.labels is None else self.labels[index]


def seeded_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A generator that depends on (seed, step, purpose) alone."""
    stream = {"epoch": 0, "step": 1}[purpose]
    return torch.Generator().manual_seed(mixed_seed(seed, (step << 1) + stream))


def mixed_seed(seed: int, number: int) -> int:
    """A seed of 32 bits, all that torch's generator takes on the CPU (it drops higher ones).

    Numbers count up; the odd factor, 2^32 over the golden ratio, keeps the seeds' ranges apart.
    """
    return (seed * 0x9E3779B1 + number) % (1 << 32)
