"""Sources of images: in memory, in files, in ADM-style sample sets.

Each gives its images in order (`batches`) and by number (`take`), as uint8 (B, H, W, 3).
"""

import functools
import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrepro import npz
from cmrepro.data.decoding import UnreadableImagesError, decode
from cmrepro.data.encoded import EncodedFiles
from cmrepro.files import array_sha256

CHUNK_IMAGES = 1000  # images read at once where all are wanted

Indices = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class ImageDataset:
    """Images in memory, with their labels.

    Attributes:
        name: What records call it, e.g. "cifar10-train".
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, or None.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self.images.shape[1:]

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """The images of these numbers, (B, H, W, 3)."""
        return self.images[np.asarray(indices)]

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
        end = len(self.images) if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.images[first : min(first + batch_size, end)]

    def sha256(self) -> str:
        """Checksum of the pixels in their order."""
        return array_sha256(self.images)


@dataclass(frozen=True)
class ImageFiles:
    """Images in files that are decoded when they are needed, on all cores.

    Attributes:
        name: What records call them.
        image_names: Names of the files, in order.
        files: Where they lie.
        labels: (N,) int64, or None.
        image_size: Bring each image to this size, see `decode`; None: as it is.
    """

    name: str
    image_names: Sequence[str]
    files: EncodedFiles
    labels: NDArray[np.int64] | None = None
    image_size: int | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_names)

    @functools.cached_property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3), the first image's where they come as they are."""
        if self.image_size is not None:
            return (self.image_size, self.image_size, 3)
        return decode(self.image_names[0], self.files.read, None).shape

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """The images of these numbers, (B, H, W, 3).

        Raises:
            UnreadableImagesError: Some cannot be decoded; all of these are named.
            ValueError: A file is to be taken as it is, and not RGB or of another size than the
                first.
        """
        batch = np.empty((len(indices), *self.image_shape), np.uint8)
        unreadable: dict[int, str] = {}

        def fill(part: range) -> None:
            for i in part:
                index = int(indices[i])
                try:
                    batch[i] = self._decoded(self.image_names[index])
                except UnreadableImagesError as error:
                    [unreadable[index]] = error.problems.values()

        threads = _threads()
        parts = [range(first, len(indices), threads) for first in range(threads)]
        list(_pool(os.getpid()).map(fill, parts))
        if unreadable:
            problems = {self.image_names[i]: unreadable[i] for i in sorted(unreadable)}
            raise UnreadableImagesError(problems, tuple(sorted(unreadable)))
        return batch

    def _decoded(self, file_name: str) -> NDArray[np.uint8]:
        pixels = decode(file_name, self.files.read, self.image_size)
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"'{self.name}' mixes sizes: {self.image_names[0]} is {self.image_shape[:2]}, "
                f"{file_name} is {pixels.shape[:2]}; resize the images beforehand"
            )
        return pixels

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches (B, H, W, 3), as `take`; the last may be smaller."""
        end = self.num_images if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.take(range(first, min(first + batch_size, end)))

    def sha256(self) -> str:
        """Checksum of which files these are: their names and lengths, and the size asked for.

        The pixels', for which every image has to be decoded, is that of `images_sha256`.
        """
        digest = hashlib.sha256(f"{self.image_size}\n".encode())
        for first in range(0, self.num_images, CHUNK_IMAGES):
            names = self.image_names[first : first + CHUNK_IMAGES]
            for name, length in zip(names, self.files.lengths(names), strict=True):
                digest.update(f"{name}\0{length}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _threads() -> int:
    """Cores of this process, its share of them under `torchrun`."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that decode, of one process: they do not survive a fork."""
    return ThreadPoolExecutor(_threads(), f"decode-{process}")


@dataclass(frozen=True)
class SampleSet:
    """An ADM-style file: `arr_0` uint8 (N, H, W, 3), optional `arr_1` integer labels (N,).

    Attributes:
        name: What records call it.
        path: The .npz.
        shape: (N, H, W, 3).
        labels: (N,) int64, or None.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    labels: NDArray[np.int64] | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return self.shape[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""
        return self.shape[1:]

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """The images of these numbers, (B, H, W, 3); their checksum is not compared.

        Raises:
            ValueError: The file is compressed, so that all images before one have to be read, or
                cut off.
        """
        return np.asarray(self._mapped[np.asarray(indices)])

    @functools.cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        """The images where they lie in the file."""
        with zipfile.ZipFile(self.path) as archive:
            member = archive.getinfo("arr_0.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{self.path} is compressed and cannot be read at random places; write it "
                "again with numpy.savez"
            )
        with npz.open_array(self.path) as (file, *_):
            header_bytes = file.tell()
        with open(self.path, "rb") as raw:
            # The local header: 30 bytes, of which the last 4 are the lengths of name and extra.
            raw.seek(member.header_offset + 26)
            lengths = np.frombuffer(raw.read(4), "<u2")
        offset = member.header_offset + 30 + int(lengths.sum()) + header_bytes
        return np.memmap(self.path, np.uint8, "r", offset, self.shape)

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller.

        Raises:
            ValueError: The file is cut off or damaged.
        """
        try:
            yield from npz.image_batches(self.path, batch_size, start, stop)
        except npz.DAMAGED as error:
            raise ValueError(f"{self.path} is damaged ({error}); write it again") from error

    def sha256(self) -> str:
        """Checksum of the pixels in their order."""
        return images_sha256(self)


ImageSource = ImageDataset | ImageFiles | SampleSet


def images_sha256(source: ImageSource, num_images: int | None = None) -> str:
    """Checksum of the pixels of the first `num_images` images (all by default) in their order."""
    digest = hashlib.sha256()
    for batch in source.batches(CHUNK_IMAGES, stop=num_images):
        digest.update(batch.tobytes())
    return digest.hexdigest()


def open_sample_set(path: Path, name: str) -> SampleSet:
    """The sample set in an .npz, its images not yet read.

    Raises:
        ValueError: It is none.
    """
    try:
        with npz.open_array(path) as (_, shape, column_major, dtype):
            pass
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays.get("arr_1")
    except Exception as error:  # numpy, zipfile and zlib each raise their own kinds
        raise ValueError(
            f"{path} is not a sample set ({error}); allowed is .npz with arr_0 uint8 (N, H, W, 3)"
        ) from error
    if advice := list(_repairs(shape, column_major, dtype)):
        raise ValueError(
            f"{path} holds arr_0 {dtype} {shape}; allowed is uint8 (N, H, W, 3): "
            f"{', and '.join(advice)}"
        )
    if labels is None:
        return SampleSet(name, path, shape)
    if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
        raise ValueError(
            f"{path} holds arr_1 {labels.dtype} {labels.shape}; allowed are integer class numbers "
            f"{shape[:1]}"
        )
    return SampleSet(name, path, shape, labels.astype(np.int64))


def _repairs(
    shape: tuple[int, ...], column_major: bool, dtype: np.dtype[np.generic]
) -> Iterator[str]:
    """What makes a sample set of an array that is none."""
    if 0 in shape:
        yield "it has no images; sample some"
        return
    if dtype.kind == "f":
        yield "round images in [-1, 1] by (127.5 * x + 127.5).round().clip(0, 255)"
    if dtype != np.uint8:
        yield "convert levels of 0-255 by x.astype(numpy.uint8)"
    if len(shape) == 4 and shape[1] == 3 != shape[3]:
        yield "transpose to (N, H, W, 3) by x.transpose(0, 2, 3, 1)"
    elif len(shape) != 4 or shape[3] != 3:
        yield "three channels are needed, red, green and blue"
    if column_major:
        yield "write it in row-major order by numpy.ascontiguousarray(x)"
