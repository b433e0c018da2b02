"""Features of image sets: an extractor's outputs, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch

from cmrepro.metrics.extractors import Extractor

# Images that a source hands over at a time, and the most that a network takes in one pass.
BATCH_SIZE = 64


class ImageBatches(Protocol):
    """A source of images, which need not be in memory.

    Attributes:
        num_images: N.
    """

    @property
    def num_images(self) -> int: ...

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        """Images start to stop - 1 in batches, uint8 (B, H, W, 3); the last may be smaller."""
        ...


class Features(NamedTuple):
    """What an extractor gives for a set of images.

    Attributes:
        features: Pooled features, float32 (N, D).
        logits: Class logits, float32 (N, K), or None.
        spatial: Spatial features for sFID, float32 (N, S), or None.
    """

    features: np.ndarray
    logits: np.ndarray | None = None
    spatial: np.ndarray | None = None


def check_images(images: np.ndarray) -> None:
    """Refuse what is not a set of RGB images.

    Raises:
        ValueError: If the array is not uint8 (N, H, W, 3) with at least one image.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise ValueError(
            f"images are {got}, must be a uint8 array with values 0-255; "
            "convert floats in [-1, 1] with round((x + 1) * 127.5) first"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}, must be (N, H, W, 3) with N >= 1; "
            "move the channels last and convert to RGB"
        )


@torch.inference_mode()
def extract(images: np.ndarray, extractor: Extractor, batch_size: int = BATCH_SIZE) -> Features:
    """Features of some images.

    Every pass has the same number of images, the smaller of `batch_size` and what suits the
    extractor. The last one is filled up with black images, whose output is dropped, so that the
    features of an image depend neither on N nor on the other images.

    Args:
        images: uint8 (N, H, W, 3), RGB, 0-255; those of one call are held in memory.
        extractor: From `load_extractor`.
        batch_size: Most images per pass, at least 1.

    Returns:
        Features of N images.

    Raises:
        ValueError: If the images are not uint8 (N, H, W, 3), or the batch size is below 1.
    """
    check_images(images)
    if batch_size < 1:
        raise ValueError(
            f"batch_size is {batch_size}, must be at least 1; leave it out for {BATCH_SIZE}"
        )
    size = min(batch_size, extractor.images_at_once)
    parts = []
    # TensorFloat32, the default of convolutions on recent GPUs, rounds to 11 bits; the extractors
    # are defined in float32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            batch = np.zeros((size, *images.shape[1:]), np.uint8)
            batch[: len(chunk)] = chunk
            outputs = extractor(torch.from_numpy(batch).to(extractor.mean.device))
            features, logits, spatial = (
                None if x is None else x[: len(chunk)].cpu().numpy() for x in outputs
            )
            assert features is not None
            parts.append(Features(features, logits, spatial))
    return _joined(parts)


def _joined(parts: list[Features]) -> Features:
    """The features of several sets, one after the other."""

    def joined(index: int) -> np.ndarray | None:
        arrays = [array for part in parts if (array := part[index]) is not None]
        return np.concatenate(arrays) if arrays else None

    return Features(np.concatenate([part.features for part in parts]), joined(1), joined(2))
