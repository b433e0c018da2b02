"""Images in an .npz, uint8 (N, H, W, 3) under ADM's key `arr_0`, read batch by batch.

The caller explains `DAMAGED`, what numpy, zipfile and zlib raise for a damaged file.
"""

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError)


@contextlib.contextmanager
def open_array(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]]:
    """File of `arr_0` at its first value; its shape, True if column-major, and its type."""
    with zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in (names := archive.namelist()):
            keys = ", ".join(name.removesuffix(".npy") for name in names)
            raise ValueError(f"it holds {keys or 'nothing'}, but no arr_0")
        with archive.open("arr_0.npy") as file:
            major, _ = np.lib.format.read_magic(file)
            form = np.lib.format
            read = form.read_array_header_1_0 if major == 1 else form.read_array_header_2_0
            yield file, *read(file)


def image_batches(
    path: Path, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
    with open_array(path) as (file, (num_images, *image_shape), _, _):
        image_bytes = math.prod(image_shape)
        end = num_images if stop is None else stop
        file.seek(start * image_bytes, os.SEEK_CUR)
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            pixels = np.frombuffer(file.read(count * image_bytes), np.uint8)
            yield pixels.reshape(count, *image_shape)
        file.read(1)  # at the end of the file, zipfile compares its checksum
