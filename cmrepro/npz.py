"""Images in an .npz or .npy, uint8 (N, H, W, 3), under ADM's key `arr_0`, read batch by batch."""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmrepro.files import short

FIRST_BYTES = 1 << 24  # of an array of another type, whose range decides the advice


class Array(NamedTuple):
    """Images in a file, at their first value."""

    file: IO[bytes]
    keys: list[str]  # of all arrays in the file
    shape: tuple[int, ...]  # (N, H, W, 3), or (N, 3, H, W) with `channels_first`
    column_major: bool
    dtype: np.dtype


@contextlib.contextmanager
def open_images(path: Path, channels_first: bool = False) -> Iterator[Array]:
    """Array of images, `arr_0` of an .npz or the only one of an .npy."""
    form, keys, size = np.lib.format, ["arr_0"], os.path.getsize(path)
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(path, "rb"))
        if file.read(len(form.MAGIC_PREFIX)) == form.MAGIC_PREFIX:
            file.seek(0)
        else:
            archive = stack.enter_context(zipfile.ZipFile(file))
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0" not in keys:
                found = short(", ".join(keys)) or "nothing"
                raise ValueError(f"it holds {found}, but no arr_0; use numpy.savez(path, images)")
            size = archive.getinfo("arr_0.npy").file_size
            file = stack.enter_context(archive.open("arr_0.npy"))
        version, _ = form.read_magic(file)
        read = form.read_array_header_1_0 if version == 1 else form.read_array_header_2_0
        try:
            array = Array(file, keys, *read(file))
        except Exception as error:  # numpy evaluates it as an expression of Python
            raise ValueError("its header is damaged; write it again") from error
        shape = array.shape
        channels = shape[1:2] if channels_first else shape[3:]
        if array.dtype != np.uint8 or len(shape) != 4 or 0 in shape or channels != (3,):
            needed = "(N, 3, H, W)" if channels_first else "(N, H, W, 3)"
            found = f"arr_0 is {short(f'{array.dtype} {shape}', 36)}, must be uint8 {needed}"
            raise ValueError(f"{found}; {_advice(array, channels_first)}")
        size -= file.tell()
        if size != math.prod(shape):
            raise ValueError(f"arr_0 has {size} bytes of {math.prod(shape)}; write it again")
        yield array


def image_batches(
    path: Path,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    channels_first: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
    with open_images(path, channels_first) as array:
        file, (num_images, *image_shape) = array.file, array.shape
        image_bytes = math.prod(image_shape)
        end = num_images if stop is None else stop
        if array.column_major:  # the first values of all images come first
            whole = np.frombuffer(file.read(), np.uint8).reshape(array.shape, order="F")
            file = io.BytesIO(whole.tobytes())
        file.seek(start * image_bytes, os.SEEK_CUR)
        for first in range(start, end, batch_size):
            count = min(batch_size, end - first)
            pixels = np.frombuffer(file.read(count * image_bytes), np.uint8)
            batch = pixels.reshape(count, *image_shape)
            yield np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if channels_first else batch)
        array.file.read(1)  # at the end of the file, zipfile compares its checksum


def _advice(array: Array, channels_first: bool) -> str:
    """The way from another array, `x`, to 8-bit RGB."""
    dtype, shape = array.dtype, array.shape
    if dtype.hasobject:
        return "load it with allow_pickle=True and save numpy.stack(list(x))"
    if len(shape) != 4 or 0 in shape or 3 not in (shape[1], shape[3]) or dtype.kind not in "fiub":
        return "repeat grey 3 times along a last axis, leave out opaque alpha"
    if dtype == np.uint8 and channels_first:
        return "leave channels_first out"
    moved = "" if shape[3] == 3 else ".transpose(0, 2, 3, 1)"
    if dtype == np.uint8:
        return f"save x{moved}, or add channels_first (--channels-first)"
    size = FIRST_BYTES // dtype.itemsize * dtype.itemsize
    values = np.frombuffer(array.file.read(size), dtype)
    low, high = float(values.min()), float(values.max())
    is_float, known = dtype.kind == "f", -1.05 < low <= high < 1.05
    if dtype.kind == "b" or (is_float and known and low > -0.05):
        x = "(255 * x).round().clip(0, 255)"
    elif is_float and known:
        x = "(127.5 * x + 127.5).round().clip(0, 255)"
    elif -0.5 < low <= high < 255.5:
        x = "x.round().clip(0, 255)"
    else:
        x = "(x / 257).round()" if dtype == np.uint16 else "(x scaled to 0 to 255).round()"
    return f'values are from {low:.4g} to {high:.4g}: save {x}.astype("uint8"){moved}'
