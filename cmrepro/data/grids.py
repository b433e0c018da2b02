"""Grids of images as PNG files."""

import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.files import atomic_path

GRID_ROWS, GRID_COLUMNS, TILE, GAP = 5, 12, 64, 4  # tiles and the gaps between them in pixels
REAL = Path("results/samples/real.png")  # made by whoever has the data; never committed


def write_grid(
    path: Path,
    images: NDArray[np.uint8],
    overwrite: bool = True,
    rows: int = GRID_ROWS,
    columns: int = GRID_COLUMNS,
) -> None:
    """Write the first images, uint8 (N, H, W, 3), as a PNG of one size with transparent gaps.

    Without `overwrite`, a file of other content stays, which a line on stderr says.
    """
    step = TILE + GAP
    grid = Image.new("RGBA", (columns * step - GAP, rows * step - GAP))
    for i, image in enumerate(images[: rows * columns]):
        tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BOX)
        grid.paste(tile, (i % columns * step, i // columns * step))
    content = io.BytesIO()
    grid.save(content, format="PNG")
    if not overwrite and path.exists() and path.read_bytes() != content.getvalue():
        print(f"{path} is of other images and stays; --overwrite replaces it", file=sys.stderr)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())
