"""Sources of images: arrays in memory, image files, sample sets (.npz, .npy)."""

import contextlib
import hashlib
import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cmrepro.data.containers import Container, Labels, centre_square, read_image
from cmrepro.files import item_digests, one_line_errors, short

CHUNK_IMAGES = 1000  # images read at once where all are read
FIRST_BYTES = 1 << 24  # of an array of another type, whose range decides the advice

Indices = Sequence[int] | NDArray[np.int64]
Images = NDArray[np.uint8]
Batches = Iterator[Images]


class ImageSource:
    """Images, in order (`batches`) and by number (`take`)."""

    def __init__(self, name: str, shape: tuple[int, ...], labels: Labels = None) -> None:
        self.name = name  # in records, e.g. "cifar10-train"
        self.shape = shape  # (N, H, W, 3)
        self.num_images, self.image_shape = shape[0], shape[1:]
        self.labels = labels  # classes (N,) int64

    def take(self, indices: Indices) -> Images:
        """Images of these numbers, uint8 (B, H, W, 3), a copy."""
        raise NotImplementedError

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
        end = self.num_images if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.take(range(first, min(first + batch_size, end)))

    def sha256(self) -> str:
        """Checksum that tells data sets apart: of all pixels in their order, if not of files."""
        digest = hashlib.sha256()
        for batch in self.batches(CHUNK_IMAGES):
            digest.update(batch.tobytes())
        return digest.hexdigest()


def images_sha256(source: ImageSource, num_images: int) -> str:
    """Checksum of the first images of a sample set, that of `items_sha256`."""
    digest = hashlib.sha256()
    for batch in source.batches(CHUNK_IMAGES, stop=num_images):
        digest.update(item_digests(batch))
    return digest.hexdigest()


class ImageDataset(ImageSource):
    """Images in memory, `images` uint8 (N, H, W, 3)."""

    def __init__(self, name: str, images: Images, labels: Labels = None) -> None:
        super().__init__(name, images.shape, labels)
        self.images = images

    def take(self, indices: Indices) -> Images:
        return self.images[np.asarray(indices)]


class ImageFiles(ImageSource):
    """Image files, decoded when they are needed, large ones on all cores; see `open_images`."""

    def __init__(self, name: str, files: Container, image_size: int | None) -> None:
        first = files.image_names[0]
        width, height = read_image(first, files).size
        if image_size and min(width, height) < image_size:
            takes = f"the network takes {image_size}x{image_size}; enlarge it beforehand"
            raise ValueError(f"{short(first)} has {height}x{width} pixels, {takes}")
        shape = (len(files.image_names), image_size or height, image_size or width, 3)
        super().__init__(name, shape, files.labels)
        self.files, self.image_size = files, image_size
        self.are_large = width * height >= 256**2  # threads slow the decoding of smaller ones

    def take(self, indices: Indices) -> Images:
        from cmrepro.distributed import thread_pool  # here: the report needs no torch

        names = [self.files.image_names[i] for i in indices]
        decode = thread_pool()[0].map if self.are_large else map
        return np.stack([*decode(self._pixels, names)])

    def _pixels(self, name: str) -> Images:
        image = read_image(name, self.files)
        if self.image_size is not None:
            return centre_square(image, self.image_size)
        if (pixels := np.asarray(image)).shape != self.image_shape:
            first = f"{short(self.files.image_names[0])} is {self.image_shape[:2]}"
            other = f"{short(name)} is {pixels.shape[:2]}"
            raise ValueError(
                f"'{short(self.name)}' mixes sizes: {first}, {other}; resize them beforehand"
            )
        return pixels

    def sha256(self) -> str:
        """Checksum of the names and lengths of the files and of the size; no image is decoded."""
        digest = hashlib.sha256(f"{self.image_size}\n".encode())
        for name in self.files.image_names:
            line = f"{name}\0{self.files.length(name)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class SampleSet(ImageSource):
    """ADM's arrays in an .npz, `arr_0` uint8 (N, H, W, 3) and optional labels `arr_1`; an .npy.

    With `channels_first`, `arr_0` is (N, 3, H, W).
    """

    def __init__(self, path: Path, name: str, channels_first: bool = False) -> None:
        self.path, self.channels_first, labels = path, channels_first, None
        with (
            one_line_errors(path, "is not a sample set"),
            self._opened() as (file, size, dtype, shape, _),
        ):
            axis = 1 if channels_first else 3
            if dtype != np.uint8 or len(shape) != 4 or 0 in shape or shape[axis] != 3:
                needed = "(N, 3, H, W)" if channels_first else "(N, H, W, 3)"
                found = f"arr_0 is {short(f'{dtype} {shape}', 36)}, must be uint8 {needed}"
                raise ValueError(f"{found}; {_advice(file, dtype, shape, channels_first)}")
            if size != math.prod(shape):
                raise ValueError(f"arr_0 has {size} bytes of {math.prod(shape)}; write it again")
            if channels_first:
                shape = shape[0], *shape[2:], 3
            if isinstance(file, zipfile.ZipExtFile):
                with np.load(path, allow_pickle=False) as arrays:
                    labels = arrays.get("arr_1")
            if labels is not None:
                is_integer = labels.dtype.kind in "iu" and labels.shape == shape[:1]
                if not is_integer or labels.max() >= 2**63:
                    found = short(f"arr_1 is {labels.dtype} {labels.shape}")
                    raise ValueError(f"{found}, must be integers {shape[:1]} below 2^63")
                labels = labels.astype(np.int64)
        super().__init__(name, shape, labels)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int, np.dtype, tuple[int, ...], bool]]:
        """The array at its first value: file, bytes, type, shape, True if it is column-major."""
        form = np.lib.format
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(open(self.path, "rb"))
            size = os.path.getsize(self.path)
            if file.read(len(form.MAGIC_PREFIX)) != form.MAGIC_PREFIX:
                archive = stack.enter_context(zipfile.ZipFile(file))
                if "arr_0.npy" not in (names := archive.namelist()):
                    found = short(", ".join(x.removesuffix(".npy") for x in names)) or "nothing"
                    advice = "use numpy.savez(path, images)"
                    raise ValueError(f"it holds {found}, but no arr_0; {advice}")
                size = archive.getinfo("arr_0.npy").file_size
                file = stack.enter_context(archive.open("arr_0.npy"))
            file.seek(0)
            version, _ = form.read_magic(file)
            read = form.read_array_header_1_0 if version == 1 else form.read_array_header_2_0
            try:
                shape, column_major, dtype = read(file)
            except Exception as error:  # numpy evaluates it as an expression of Python
                raise ValueError("its header is damaged; write it again") from error
            yield file, size - file.tell(), dtype, shape, column_major

    def take(self, indices: Indices) -> Images:
        numbers, taken = np.asarray(indices), np.empty((len(indices), *self.image_shape), np.uint8)
        firsts = range(0, self.num_images, CHUNK_IMAGES)
        for first, batch in zip(firsts, self.batches(CHUNK_IMAGES), strict=True):
            inside = (first <= numbers) & (numbers < first + len(batch))
            taken[inside] = batch[numbers[inside] - first]
        return taken

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Images read one after the other, none of them twice."""
        image_bytes, end = math.prod(self.image_shape), self.num_images if stop is None else stop
        with (
            one_line_errors(self.path, "is damaged", "write it again"),
            self._opened() as (file, _, _, shape, column_major),
        ):
            values = file
            if column_major:  # the first values of all images come first
                whole = np.frombuffer(file.read(), np.uint8).reshape(shape, order="F")
                values = io.BytesIO(whole.tobytes())
            values.seek(start * image_bytes, os.SEEK_CUR)
            for first in range(start, end, batch_size):
                count = min(batch_size, end - first)
                pixels = np.frombuffer(values.read(count * image_bytes), np.uint8)
                batch = pixels.reshape(count, *shape[1:])
                order = (0, 2, 3, 1) if self.channels_first else (0, 1, 2, 3)
                yield np.ascontiguousarray(batch.transpose(order))
            file.read(1)  # at the end of the file, zipfile compares its checksum


def _advice(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], channels_first: bool) -> str:
    """The way from another array, `x`, to 8-bit RGB."""
    if dtype.hasobject:
        return "load it with allow_pickle=True and save numpy.stack(list(x))"
    if len(shape) != 4 or 0 in shape or 3 not in (shape[1], shape[3]) or dtype.kind not in "fiub":
        return "repeat grey 3 times along a last axis, leave out opaque alpha"
    if dtype == np.uint8 and channels_first:
        return "leave channels_first out"
    moved = "" if shape[3] == 3 else ".transpose(0, 2, 3, 1)"
    if dtype == np.uint8:
        return f"save x{moved}, or add channels_first (--channels-first)"
    values = np.frombuffer(file.read(FIRST_BYTES // dtype.itemsize * dtype.itemsize), dtype)
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
