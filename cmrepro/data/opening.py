"""From a name or a path to images: to score, to hold in memory, to train on."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmrepro.data.decoding import SUFFIXES, UnreadableImagesError, encoded_size
from cmrepro.data.encoded import EncodedFiles, FolderFiles, LmdbFiles, ZipFiles
from cmrepro.data.labels import labels_of
from cmrepro.data.named import load_cifar10, synthetic
from cmrepro.data.shards import TarShards, shard_paths
from cmrepro.data.sources import (
    CHUNK_IMAGES,
    ImageDataset,
    ImageFiles,
    ImageSource,
    Indices,
    SampleSet,
    open_sample_set,
)

HELD_BYTES = 1 << 30  # training images that take no more than this are held in memory

log = logging.getLogger(__name__)


class TrainingImages(Protocol):
    """Images that training takes in any order."""

    @property
    def name(self) -> str:
        """What records call them."""

    @property
    def num_images(self) -> int:
        """N."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, 3)."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,), or None."""

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """The images of these numbers, (B, H, W, 3)."""

    def sha256(self) -> str:
        """Checksum that tells other images apart."""


def open_images(
    source: str | Path, name: str | None = None, image_size: int | None = None
) -> ImageSource:
    """The images behind a name or a path, those in files not yet read.

    Args:
        source: "cifar10-train" or "cifar10-test" (downloaded once), "synthetic", or the path of a
            folder or zip of images (EDM's dataset.json, class folders or ImageNet's file names
            give labels), of an LMDB (LSUN's format), of tar shards (webdataset's layout: a folder
            of .tar, one, or a range such as train-{0000..0146}.tar) or of a sample set (.npz with
            `arr_0`).
        name: Name in records; the file's own by default.
        image_size: Bring images in files to this size; None: take them as they are.

    Raises:
        ValueError: Nothing is there, or it is none of these.
    """
    text = str(source)
    if text in ("cifar10-train", "cifar10-test"):
        return load_cifar10(text.removeprefix("cifar10-"))
    if text == "synthetic":
        return synthetic()
    path = Path(source)
    if (path / "data.mdb").is_file():
        database = LmdbFiles(path)
        return _image_files(name or path.name, database.names, database, None, image_size)
    if shards := shard_paths(source):
        tars = TarShards(shards)
        name = name or (path.name if path.is_dir() else shards[0].stem)
        return _image_files(name, tars.names, tars, tars.labels, image_size)
    if path.is_dir() or (path.suffix == ".zip" and path.is_file()):
        files = FolderFiles(path) if path.is_dir() else ZipFiles(path)
        image_names = [n for n in files.names if Path(n).suffix.lower() in SUFFIXES]
        labels = labels_of(image_names, files.names, files.read)
        name = name or (path.name if path.is_dir() else path.stem)
        return _image_files(name, image_names, files, labels, image_size)
    if path.suffix == ".npz" and path.is_file():
        return open_sample_set(path, name or path.stem)
    found = f"'{source}' is no data set" if path.exists() else f"no data set at '{source}'"
    raise ValueError(
        f"{found}; allowed are cifar10-train, cifar10-test, synthetic, a folder "
        "or .zip of images, an LMDB folder, tar shards, or an .npz sample set"
    )


def _image_files(
    name: str,
    image_names: list[str],
    files: EncodedFiles,
    labels: NDArray[np.int64] | None,
    image_size: int | None,
) -> ImageFiles:
    if not image_names:
        databases = {Path(n).parent.name for n in files.names if Path(n).name == "data.mdb"}
        hint = f"; give one of its LMDB folders: {', '.join(sorted(databases))}"
        raise ValueError(
            f"no images in '{name}'; allowed are files ending in {', '.join(sorted(SUFFIXES))}"
            f"{hint if databases else ''}"
        )
    return ImageFiles(name, image_names, files, labels, image_size)


def load_dataset(source: str | Path, name: str | None = None) -> ImageDataset:
    """The images behind a name or a path, in memory; see `open_images`.

    Raises:
        ValueError: Nothing is there, it cannot be read, or a file is no RGB image of one size.
    """
    opened = open_images(source, name)
    return opened if isinstance(opened, ImageDataset) else _in_memory(opened)


def _in_memory(source: "ImageFiles | SampleSet | ReadableImages") -> ImageDataset:
    images = np.empty((source.num_images, *source.image_shape), np.uint8)
    filled = 0
    with tqdm(total=len(images), desc=source.name, unit="image", delay=2, leave=False) as bar:
        for batch in source.batches(CHUNK_IMAGES):
            images[filled : filled + len(batch)] = batch
            filled += len(batch)
            bar.update(len(batch))
    return ImageDataset(source.name, images, source.labels)


def training_images(
    source: str | Path, image_size: int, max_unreadable: int = 0
) -> TrainingImages:
    """The images behind a name or a path for a network: in memory if they fit `HELD_BYTES`.

    Others are read when a step needs them. Images in files are brought to the network's size.

    Args:
        source: See `open_images`.
        image_size: Of the network, pixels.
        max_unreadable: Leave out so many images that cannot be decoded, and log their names.

    Raises:
        ValueError: See `open_images`; the first image is smaller than `image_size`; or more images
            cannot be decoded than may be left out (of those that are not in memory, when a step
            meets them).
    """
    images: ImageSource | ReadableImages = open_images(source, image_size=image_size)
    if isinstance(images, ImageFiles):
        first = images.image_names[0]
        height, width = encoded_size(first, images.files.read) or images.image_shape[:2]
        if min(height, width) < image_size:
            raise ValueError(
                f"{first} has {height}x{width} pixels, the network takes {image_size}x"
                f"{image_size}; give larger images, or enlarge them beforehand"
            )
        images = ReadableImages(images, max_unreadable)
    if isinstance(images, ImageDataset):
        return images
    held = images.num_images * math.prod(images.image_shape) <= HELD_BYTES
    return _in_memory(images) if held else images


class ReadableImages:
    """Image files without those that cannot be decoded.

    The next readable one takes the place of each, and its label does. Which that is depends on the
    files alone, not on the order in which they are read, so that all processes agree.

    Args:
        source: The files.
        max_unreadable: How many may be left out.

    Attributes:
        left_out: Why, by number of the image, of those met so far.

    Raises:
        ValueError: All might be left out.
    """

    def __init__(self, source: ImageFiles, max_unreadable: int) -> None:
        if not 0 <= max_unreadable < source.num_images:
            raise ValueError(
                f"got max_unreadable = {max_unreadable} for {source.num_images} images; allowed "
                f"is 0 to {source.num_images - 1}"
            )
        self.source, self.max_unreadable = source, max_unreadable
        self.name, self.num_images = source.name, source.num_images
        self.image_shape = source.image_shape
        self.labels = None if source.labels is None else source.labels.copy()
        self.left_out: dict[int, str] = {}

    def take(self, indices: Indices) -> NDArray[np.uint8]:
        """The images of these numbers, or those in their places, (B, H, W, 3).

        Raises:
            UnreadableImagesError: More than may be left out.
        """
        while True:
            try:
                return self.source.take([self._place(int(index)) for index in indices])
            except UnreadableImagesError as error:
                self._leave_out(error)

    def _place(self, index: int) -> int:
        """Number of the image that is shown as this one."""
        while index in self.left_out:
            index = (index + 1) % self.num_images
        return index

    def _leave_out(self, error: UnreadableImagesError) -> None:
        self.left_out |= dict(zip(error.indices, error.problems.values(), strict=True))
        if len(self.left_out) > self.max_unreadable:
            names = self.source.image_names
            raise UnreadableImagesError(
                {names[i]: problem for i, problem in self.left_out.items()},
                tuple(self.left_out),
                f"allowed are {self.max_unreadable} (--max-unreadable); replace or remove them",
            ) from error
        for name, problem in error.problems.items():
            log.warning("left out %s, which cannot be decoded: %s", name, problem)
        if self.labels is not None and self.source.labels is not None:
            for index in self.left_out:
                self.labels[index] = self.source.labels[self._place(index)]

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """Images start to stop - 1 in batches (B, H, W, 3), as `take`; the last may be smaller."""
        end = self.num_images if stop is None else stop
        for first in range(start, end, batch_size):
            yield self.take(range(first, min(first + batch_size, end)))

    def sha256(self) -> str:
        """The checksum of the files, see `ImageFiles`."""
        return self.source.sha256()
