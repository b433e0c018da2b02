"""Sources of images: arrays in memory, image files, sample sets (.npz)."""

import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrepro import npz
from cmrepro.data.containers import Container
from cmrepro.data.decoding import UnreadableImageError, decode, encoded_size

CHUNK_IMAGES = 1000  # images read at once where all are read
MAX_LISTED = 10  # unreadable images in the text of an error

Indices = Sequence[int] | NDArray[np.int64]
Images = NDArray[np.uint8]
Batches = Iterator[Images]
Labels = NDArray[np.int64] | None

log = logging.getLogger(__name__)


class ImageSource:
    """Images, in order (`batches`) and by number (`take`).

    Attributes:
        name: Name in records, e.g. "cifar10-train".
        shape: (N, H, W, 3).
        labels: Classes (N,) int64, or None.
        num_images: N.
        image_shape: (H, W, 3).
    """

    def __init__(self, name: str, shape: tuple[int, ...], labels: Labels = None) -> None:
        self.name, self.shape, self.labels = name, shape, labels
        self.num_images, self.image_shape = shape[0], shape[1:]

    def take(self, indices: Indices) -> Images:
        """Images of these numbers, uint8 (B, H, W, 3), a copy."""
        raise NotImplementedError

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Images start to stop - 1 in batches (B, H, W, 3); the last one may be smaller."""
        end = self.num_images if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.take(range(first, min(first + batch_size, end)))

    def sha256(self) -> str:
        """Checksum that tells data sets apart: of the pixels in their order, if not of files."""
        return images_sha256(self)


def images_sha256(source: ImageSource, num_images: int | None = None) -> str:
    """Checksum of the pixels of the first `num_images` images (default: all) in their order."""
    digest = hashlib.sha256()
    for batch in source.batches(CHUNK_IMAGES, stop=num_images):
        digest.update(batch.tobytes())
    return digest.hexdigest()


class ImageDataset(ImageSource):
    """Images in memory, `images` uint8 (N, H, W, 3)."""

    def __init__(self, name: str, images: Images, labels: Labels = None) -> None:
        super().__init__(name, images.shape, labels)
        self.images = images

    def take(self, indices: Indices) -> Images:
        return self.images[np.asarray(indices)]

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Views of the images; see `ImageSource`."""
        end = self.num_images if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.images[first : min(first + batch_size, end)]


class ImageFiles(ImageSource):
    """Image files, decoded when they are needed, on all cores.

    The next readable image takes the place of one that cannot be decoded, and so does its label.
    The choice depends on the files alone and not on the order of reading: all processes agree.

    Args:
        name: Name in records.
        image_names: Names of the files, in order.
        files: Their container.
        labels: Classes (N,), or None.
        image_size: Side in px to which images are brought, see `decode`; None: as they are.
        max_unreadable: Number of images that may be replaced.
    """

    def __init__(
        self,
        name: str,
        image_names: Sequence[str],
        files: Container,
        labels: Labels = None,
        image_size: int | None = None,
        max_unreadable: int = 0,
    ) -> None:
        if not 0 <= max_unreadable < len(image_names):
            raise ValueError(
                f"got max_unreadable = {max_unreadable} for {len(image_names)} images; allowed "
                f"is 0 to {len(image_names) - 1}"
            )
        try:
            height, width = encoded_size(image_names[0], files.read)
        except UnreadableImageError as error:
            if image_size is None:
                raise ValueError(f"cannot decode {error}; replace or remove it") from error
            height = width = image_size
        if image_size is not None:
            if min(height, width) < image_size:
                raise ValueError(
                    f"{image_names[0]} has {height}x{width} pixels, the network takes "
                    f"{image_size}x{image_size}; give larger images, or enlarge them beforehand"
                )
            height = width = image_size
        # A copy: a replaced image takes its label along.
        labels = None if labels is None else labels.copy()
        super().__init__(name, (len(image_names), height, width, 3), labels)
        self.image_names, self.files, self.image_size = image_names, files, image_size
        self.max_unreadable = max_unreadable
        self._unreadable: dict[int, str] = {}

    def take(self, indices: Indices) -> Images:
        """Images of these numbers, or their replacements, uint8 (B, H, W, 3).

        Raises:
            ValueError: More images than `max_unreadable` cannot be decoded; or, where images are
                taken as they are, one is not RGB or differs in size from the first.
        """
        batch = np.empty((len(indices), *self.image_shape), np.uint8)
        known = set(self._unreadable)

        def fill(positions: range) -> None:
            for i in positions:
                batch[i] = self._pixels(int(indices[i]))

        threads = _threads()
        list(_pool(os.getpid()).map(fill, [range(i, len(batch), threads) for i in range(threads)]))
        if found := self._unreadable.keys() - known:
            self._replace(sorted(found))
        return batch

    def _pixels(self, index: int) -> Images:
        while True:
            if index in self._unreadable:
                index = self._readable(index)
            name = self.image_names[index]
            try:
                pixels = decode(name, self.files.read, self.image_size)
            except UnreadableImageError as error:
                self._unreadable[index] = str(error)
                if len(self._unreadable) > self.max_unreadable:
                    return np.zeros(self.image_shape, np.uint8)  # `_replace` refuses the batch
                continue
            if pixels.shape != self.image_shape:
                raise ValueError(
                    f"'{self.name}' mixes sizes: {self.image_names[0]} is {self.image_shape[:2]}, "
                    f"{name} is {pixels.shape[:2]}; resize the images beforehand"
                )
            return pixels

    def _readable(self, index: int) -> int:
        """Number of the image that is shown as image `index`."""
        following = itertools.chain(range(index, self.num_images), range(index))
        return next((i for i in following if i not in self._unreadable), index)

    def _replace(self, found: list[int]) -> None:
        """Log what cannot be decoded and change its labels, or refuse too many."""
        if len(self._unreadable) > self.max_unreadable:
            problems = [self._unreadable[index] for index in sorted(self._unreadable)]
            more = ", …" if len(problems) > MAX_LISTED else ""
            allowed = f"at most {self.max_unreadable} may be replaced (--max-unreadable); "
            raise ValueError(
                f"cannot decode {', '.join(problems[:MAX_LISTED])}{more}; "
                f"{'' if self.image_size is None else allowed}replace or remove them"
            )
        for index in found:
            log.warning("left out an image that cannot be decoded: %s", self._unreadable[index])
        if self.labels is not None:
            for index in self._unreadable:
                self.labels[index] = self.labels[self._readable(index)]

    def sha256(self) -> str:
        """Checksum of the names and lengths of the files and of the size; no image is decoded."""
        digest = hashlib.sha256(f"{self.image_size}\n".encode())
        for name in self.image_names:
            line = f"{name}\0{self.files.length(name)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _threads() -> int:
    """Cores of this process, its share of them under `torchrun`."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that decode, of one process: they do not survive a fork."""
    return ThreadPoolExecutor(_threads(), f"decode-{process}")


class SampleSet(ImageSource):
    """An ADM-style .npz: `arr_0` uint8 (N, H, W, 3), optional `arr_1` integer labels (N,).

    Raises:
        ValueError: It is damaged, or holds something else.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        try:
            with npz.open_array(path) as (_, shape, column_major, dtype):
                pass
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays.get("arr_1")
        except npz.DAMAGED as error:
            raise ValueError(
                f"{path} is not a sample set ({error}); allowed is .npz with arr_0 uint8 "
                "(N, H, W, 3)"
            ) from error
        fits = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and not column_major
        if not fits or 0 in shape:
            raise ValueError(
                f"{path} holds arr_0 {dtype} {shape}; allowed is uint8 (N, H, W, 3) in row-major "
                "order: numpy.ascontiguousarray((127.5 * x + 127.5).round().clip(0, 255)"
                ".astype('uint8').transpose(0, 2, 3, 1)) of x in [-1, 1] and (N, 3, H, W)"
            )
        if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != shape[:1]):
            raise ValueError(
                f"{path} holds arr_1 {labels.dtype} {labels.shape}; allowed are integer class "
                f"numbers {shape[:1]}"
            )
        super().__init__(name, shape, None if labels is None else labels.astype(np.int64))

    def take(self, indices: Indices) -> Images:
        raise ValueError(f"{self.path} is only read from its beginning; hold its images in memory")

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Images read one after the other; see `ImageSource`.

        Raises:
            ValueError: The file is cut off or damaged.
        """
        try:
            yield from npz.image_batches(self.path, batch_size, start, stop)
        except npz.DAMAGED as error:
            raise ValueError(f"{self.path} is damaged ({error}); write it again") from error
