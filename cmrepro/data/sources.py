"""Sources of images: arrays in memory, image files, sample sets (.npz)."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrepro import npz
from cmrepro.data.containers import Container, Labels, centre_square, read_image
from cmrepro.files import item_digests, one_line_errors, short

CHUNK_IMAGES = 1000  # images read at once where all are read

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
    """Image files, decoded when they are needed, on all cores; see `open_images`."""

    def __init__(self, name: str, files: Container, image_size: int | None) -> None:
        first = files.image_names[0]
        width, height = read_image(first, files).size
        if image_size and min(width, height) < image_size:
            takes = f"the network takes {image_size}x{image_size}; enlarge it beforehand"
            raise ValueError(f"{short(first)} has {height}x{width} pixels, {takes}")
        shape = (len(files.image_names), image_size or height, image_size or width, 3)
        super().__init__(name, shape, files.labels)
        self.files, self.image_size = files, image_size

    def take(self, indices: Indices) -> Images:
        batch = np.empty((len(indices), *self.image_shape), np.uint8)
        from cmrepro.distributed import thread_pool  # here: the report needs no torch

        pool, num_threads = thread_pool()

        def fill(first: int) -> None:
            for i in range(first, len(indices), num_threads):
                batch[i] = self._pixels(self.files.image_names[indices[i]])

        list(pool.map(fill, range(num_threads)))
        return batch

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
    """ADM-style arrays: `arr_0` uint8 (N, H, W, 3), optional `arr_1` integer labels (N,)."""

    def __init__(self, path: Path, name: str, channels_first: bool = False) -> None:
        self.path, self.channels_first = path, channels_first
        labels = None
        with one_line_errors(path, "is not a sample set"):
            with npz.open_images(path, channels_first) as images:
                shape = images.shape
            if channels_first:
                shape = shape[0], *shape[2:], 3
            if "arr_1" in images.keys:
                with np.load(path, allow_pickle=False) as arrays:
                    labels = arrays["arr_1"]
                is_integer = labels.dtype.kind in "iu" and labels.shape == shape[:1]
                if not is_integer or labels.max() >= 2**63:
                    found = short(f"arr_1 is {labels.dtype} {labels.shape}")
                    raise ValueError(f"{found}, must be integers {shape[:1]} below 2^63")
                labels = labels.astype(np.int64)
        super().__init__(name, shape, labels)

    def take(self, indices: Indices) -> Images:
        numbers, taken = np.asarray(indices), np.empty((len(indices), *self.image_shape), np.uint8)
        firsts = range(0, self.num_images, CHUNK_IMAGES)
        for first, batch in zip(firsts, self.batches(CHUNK_IMAGES), strict=True):
            inside = (first <= numbers) & (numbers < first + len(batch))
            taken[inside] = batch[numbers[inside] - first]
        return taken

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Batches:
        """Images read one after the other, none of them twice."""
        with one_line_errors(self.path, "is damaged", "write it again"):
            yield from npz.image_batches(self.path, batch_size, start, stop, self.channels_first)
