"""Many images in one picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.files import atomic_path

GRID_ROWS, GRID_COLUMNS = 5, 12
GRID_SCALE = 2  # screen pixels an image pixel, so that 32 px images can be seen


def write_grid(path: Path, images: NDArray[np.uint8]) -> None:
    """The first images as one PNG of `GRID_ROWS` x `GRID_COLUMNS` (or fewer).

    Args:
        path: PNG to write.
        images: uint8 (N, H, W, 3), at least one.
    """
    columns = min(GRID_COLUMNS, len(images))
    rows = min(GRID_ROWS, len(images) // columns)
    tiles = images[: rows * columns]
    _, height, width, channels = tiles.shape
    grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    enlarged = grid.repeat(GRID_SCALE, axis=0).repeat(GRID_SCALE, axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged).save(temporary, format="PNG")
