"""Images in an .npz, uint8 (N, H, W, 3) under ADM's key `arr_0`, read batch by batch."""

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

# What numpy, zipfile and zlib raise for a damaged file, and we for other arrays.
DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError)


@contextlib.contextmanager
def open_images(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """File of `arr_0` at its first value, and its shape (N, H, W, 3)."""
    with zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in (names := archive.namelist()):
            keys = ", ".join(name.removesuffix(".npy") for name in names)
            raise ValueError(f"it holds {keys or 'nothing'}, but no arr_0")
        with archive.open("arr_0.npy") as file:
            form, (version, _) = np.lib.format, np.lib.format.read_magic(file)
            read = form.read_array_header_1_0 if version == 1 else form.read_array_header_2_0
            shape, column_major, dtype = read(file)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or column_major or 0 in shape:
                order = " in column-major order" if column_major else ""
                raise ValueError(f"arr_0 is {dtype} {shape}{order}, must be uint8 (N, H, W, 3)")
            yield file, shape


def image_batches(
    path: Path, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
    with open_images(path) as (file, (num_images, *image_shape)):
        image_bytes = math.prod(image_shape)
        end = num_images if stop is None else stop
        file.seek(start * image_bytes, os.SEEK_CUR)
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            pixels = np.frombuffer(file.read(count * image_bytes), np.uint8)
            yield pixels.reshape(count, *image_shape)
        file.read(1)  # at the end of the file, zipfile compares its checksum
