"""What a step sees is a function of (seed, step, position in the global batch)."""

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import DATA, assert_equal, tiny_recipe

from cmrepro.consistency.schedules import karras_times
from cmrepro.data import ImageDataset
from cmrepro.training import data
from cmrepro.training.data import Batch, BatchSource, dropout_seed, prefetched

pytestmark = pytest.mark.usefixtures("networks")

CPU = torch.device("cpu")


def numbered(num_images: int) -> ImageDataset:
    """Image i is i on its left half and 255 on its right one."""
    images = np.full((num_images, 2, 2, 3), 255, np.uint8)
    images[:, :, 0] = np.arange(num_images)[:, None, None]
    return ImageDataset("numbered", images, np.arange(num_images))


def joined(parts: list[Batch]) -> Batch:
    columns: Any = zip(*parts, strict=True)
    return Batch(*(torch.cat(column) for column in columns))


@pytest.mark.parametrize("batch_size", [4, 10, 25])
def test_each_epoch_shows_every_image_once(batch_size: int) -> None:
    recipe = tiny_recipe("edm", batch_size=batch_size, horizontal_flip=False)
    source = BatchSource(numbered(10), recipe, 0)
    seen: list[int] = []
    for step in range(200 // batch_size):
        batch = source.batch(step)
        assert batch.images.shape == (batch_size, 3, 2, 2)
        assert (batch.images[..., 1] == 255).all()  # nothing is flipped
        assert batch.labels is not None
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
        seen += batch.labels.tolist()
    epochs = [seen[i : i + 10] for i in range(0, 200, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20  # two equal ones: 1 in 20,000
    whole = recipe.replace(batch_size=10)
    orders = [BatchSource(numbered(10), whole, seed).batch(0) for seed in (1, 2, 1 << 31)]
    assert len({tuple(b.labels.tolist()) for b in orders} | {tuple(epochs[0])}) == 4


def test_the_stream_of_one_process_is_that_of_the_bundled_models() -> None:
    """Their training drew flips, noise and times of a batch from one generator, in this order."""
    data = ImageDataset("rows", np.ascontiguousarray(DATA.images))
    for method, seed, step in (("edm", 0, 3), ("ct", 5, 0), ("cd", (1 << 32) - 1, 7)):
        batch = BatchSource(data, tiny_recipe(method, batch_size=5), seed).batch(step)

        def generator(number: int, seed: int = seed) -> torch.Generator:
            return torch.Generator().manual_seed((seed * 2654435761 + number) % 2**32)

        index = [
            torch.randperm(10, generator=generator(2 * epoch))[offset].item()
            for epoch, offset in (divmod(5 * step + i, 10) for i in range(5))
        ]
        images = torch.from_numpy(data.images[index]).permute(0, 3, 1, 2)
        drawn = generator(2 * step + 1)
        flipped = torch.rand(5, generator=drawn) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        assert torch.equal(batch.images, images)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.z, torch.randn(5, 3, 8, 8, generator=drawn))
        if method == "edm":
            t = (-1.2 + 1.2 * torch.randn(5, generator=drawn)).exp()
            assert torch.equal(batch.t, t)
            assert (batch.s == 0).all()
        else:
            num_scales = {"ct": 2, "cd": math.ceil(math.sqrt(7 / 20 * 96 + 25) - 1) + 1}[method]
            index = torch.randint(num_scales - 1, (5,), generator=drawn)
            times = karras_times(num_scales).float()
            assert torch.equal(batch.t, times[index])
            assert torch.equal(batch.s, times[index + 1])


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
@pytest.mark.parametrize("block_images", [1, 2, 3, 100])
def test_the_shares_of_any_number_of_processes_make_up_the_same_batch(
    monkeypatch: pytest.MonkeyPatch, num_processes: int, block_images: int
) -> None:
    """With few and with many blocks of noise, some of which two processes share."""
    monkeypatch.setattr(data, "NOISE_BLOCK", block_images * 3 * 8 * 8 + 5)
    recipe = tiny_recipe("cd", batch_size=7)
    whole = BatchSource(DATA, recipe, 3)
    shares = [BatchSource(DATA, recipe, 3, rank, num_processes) for rank in range(num_processes)]
    for step in (0, 4):
        parts = [source.batch(step) for source in shares]
        assert {len(part.images) for part in parts} <= {7 // num_processes, -(-7 // num_processes)}
        assert_equal(joined(parts), whole.batch(step))


def test_the_noise_of_every_block_is_standard_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "NOISE_BLOCK", 3 * 3 * 8 * 8)
    recipe = tiny_recipe("cd", batch_size=30)
    z = torch.stack([BatchSource(DATA, recipe, 0).batch(step).z for step in range(20)])
    blocks = z.view(20, 10, -1)
    assert stats.kstest(blocks.numpy().ravel(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(blocks.reshape(200, -1).numpy())
    np.fill_diagonal(correlations, 0)
    # 200 x 199 / 2 pairs of 576 values: 5.5 standard deviations are passed once in 1,300 times.
    assert np.abs(correlations).max() < 5.5 / math.sqrt(576)


def test_batches_come_in_order_from_a_thread_that_ends() -> None:
    source = BatchSource(DATA, tiny_recipe("edm"), 0)
    stream = prefetched(source, range(2, 1000), CPU)
    for step in range(2, 5):
        assert_equal(next(stream), source.batch(step))
    stream.close()
    assert not [thread for thread in threading.enumerate() if "batches" in thread.name]
    assert len(list(prefetched(source, range(2, 5), CPU))) == 3


def test_dropout_seeds_of_processes_keep_apart() -> None:
    """Over a million steps, on up to 1,024 processes; process 0 has the seed of a single one."""
    firsts = sorted(dropout_seed(7, 0, rank) for rank in range(1024))
    gaps = [b - a for a, b in zip(firsts, [*firsts[1:], firsts[0] + 2**32], strict=True)]
    assert min(gaps) > 1_000_000
    assert dropout_seed(7, 5, 0) == (7 * 2654435761 + 5) % 2**32
