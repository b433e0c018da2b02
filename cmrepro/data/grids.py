"""Grids of images as PNG files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.files import atomic_path

GRID_ROWS, GRID_COLUMNS = 5, 12


def write_grid(path: Path, images: NDArray[np.uint8]) -> None:
    """Write the first images, uint8 (N, H, W, 3), as a PNG with each pixel doubled."""
    columns = min(GRID_COLUMNS, len(images))
    rows = min(GRID_ROWS, len(images) // columns)
    _, height, width, channels = images.shape
    tiles = images[: rows * columns].reshape(rows, columns, height, width, channels)
    grid = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    with atomic_path(path) as temporary:
        Image.fromarray(grid.repeat(2, axis=0).repeat(2, axis=1)).save(temporary, format="PNG")
