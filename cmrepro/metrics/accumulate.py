"""One pass over a set of images: features, their moments, logits, checksums.

Under `torchrun`, rank 0 reads the images, hands each process a batch at a time and accumulates the
features in the order of the images, so that nothing depends on the number of processes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from cmrepro.data import ImageSource
from cmrepro.distributed import gather, rank_and_world_size, scatter
from cmrepro.metrics.extractors import BATCH_SIZE, Features, extract, load_extractor
from cmrepro.metrics.frechet import StreamingMoments
from cmrepro.progress import progress_bar
from cmrepro.settings import Extractor

PENDING_BATCHES = 64  # between two updates of the moments: 33 MB at 2,048 dimensions


class Accumulator:
    """Accumulator of an extractor's outputs for the first N images of a set."""

    def __init__(self, extractor: Extractor, selected: np.ndarray, logits: bool = False) -> None:
        self.extractor, self.num_images = extractor, len(selected)
        self._selected = selected  # (N,) bool, True for the M images whose features are stored
        self.moments = StreamingMoments(extractor.feature_dim)
        self.spatial = StreamingMoments(extractor.spatial_dim) if extractor.spatial_dim else None
        self.features = np.empty((selected.sum(), extractor.feature_dim), np.float32)  # (M, D)
        logits_shape = len(selected), extractor.num_logits
        self.logits = np.empty(logits_shape, np.float32) if logits else None
        self.digest = hashlib.sha256()  # of all features
        self._position = self._filled = 0
        self._pending: list[tuple[np.ndarray, np.ndarray | None]] = []

    def add(self, outputs: Features) -> None:
        """Take the outputs for the next images, up to the N-th."""
        if not (left := self.num_images - self._position):
            return
        features, logits, spatial = (x if x is None else x[:left] for x in outputs)
        assert features is not None
        rows = slice(self._position, self._position + len(features))
        self.digest.update(features.tobytes())
        stored = features[self._selected[rows]]
        self.features[self._filled : self._filled + len(stored)] = stored
        if self.logits is not None:
            assert logits is not None  # finite as the features are
            self.logits[rows] = logits
        self._position, self._filled = rows.stop, self._filled + len(stored)
        self._pending.append((features, spatial))
        if len(self._pending) == PENDING_BATCHES or rows.stop == self.num_images:
            self.moments.update(np.concatenate([features for features, _ in self._pending]))
            if self.spatial is not None:
                self.spatial.update(np.concatenate([x for _, x in self._pending if x is not None]))
            self._pending.clear()


def accumulate(
    images: ImageSource,
    accumulators: Sequence[Accumulator],
    hash_batch: Callable[[np.ndarray], None],
    num_images: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> bool:
    """Read images once and fill accumulators; those of one extractor share its features.

    `hash_batch` gets every batch in order, also of images up to `num_images` that no accumulator
    needs. Gives True at rank 0; at other ranks the accumulators stay empty.
    """
    rank, world_size = rank_and_world_size()
    num_extracted = max(accumulator.num_images for accumulator in accumulators)
    networks = {a.extractor: load_extractor(a.extractor, device) for a in accumulators}
    batches = images.batches(BATCH_SIZE, 0, num_extracted) if rank == 0 else iter(())
    hidden, position = not progress or rank > 0, 0
    with progress_bar(None, hidden, total=num_extracted, desc="features", unit="image") as bar:
        for _ in range(math.ceil(num_extracted / (BATCH_SIZE * world_size))):
            parts = list(islice(batches, world_size))
            part = scatter(parts)
            outputs = {} if part is None else {e: extract(part, x) for e, x in networks.items()}
            for batch, features in zip(parts, gather(outputs), strict=False):
                for accumulator in accumulators:
                    accumulator.add(features[accumulator.extractor])
                hash_batch(batch)
                bar.update(len(batch))
                position += len(batch)
    if rank == 0:
        for batch in images.batches(BATCH_SIZE, num_extracted, max(num_extracted, num_images)):
            hash_batch(batch)
            position += len(batch)
        if position != (needed := max(num_extracted, num_images)):
            raise ValueError(f"got {position} images of {needed} announced; open them again")
    return rank == 0
