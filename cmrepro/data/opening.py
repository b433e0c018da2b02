"""Images behind a name or a path: read on demand, in memory, for training."""

import math
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from cmrepro.data.containers import (
    IMAGE_START,
    LMDB_MAGIC,
    Container,
    folder_files,
    lmdb_files,
    zip_files,
)
from cmrepro.data.sources import CHUNK_IMAGES, ImageDataset, ImageFiles, ImageSource, SampleSet
from cmrepro.files import cache_folder, download, first_bytes, short
from cmrepro.progress import progress_bar

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
ALLOWED = (
    "allowed are a folder or zip of images, an LMDB, .npz or .npy samples, "
    "cifar10-train, cifar10-test, synthetic"
)
MAX_BYTES_IN_MEMORY = 1 << 30  # more images in files are decoded when a step needs them


def open_images(
    source: str | Path,
    name: str | None = None,
    image_size: int | None = None,
    channels_first: bool = False,
) -> ImageSource:
    """Images behind a path or a name; those in files are read when they are needed.

    `source` is the path of a folder or zip of images (EDM's dataset.json, class folders or
    ImageNet's file names give labels), of an LMDB (LSUN's format) or of a sample set (.npz with
    `arr_0`, or .npy), whatever its suffix. Where no such path exists, it is "cifar10-train" or
    "cifar10-test" (downloaded once) or "synthetic". `name` stands in records. Images in files
    become squares of `image_size` px if it is not None; arrays of samples are (N, 3, H, W) if
    `channels_first`.
    """
    path, shown = Path(os.path.expanduser(source)), short(source, 80)
    if not (shown and os.path.exists(path)):
        if shown in ("cifar10-train", "cifar10-test"):
            return load_cifar10(shown.removeprefix("cifar10-"))
        if shown == "synthetic":
            return synthetic()
        raise ValueError(f"no data set at '{shown}'; {ALLOWED}")
    absolute = Path(os.path.abspath(path))
    name = name or (absolute.name if path.is_dir() else absolute.stem)
    files = _files(path)
    if files is None:
        return SampleSet(path, name, channels_first)
    others = f"{len(files.left_out)} hidden or other files"
    if files.left_out:
        others += f", e.g. {short(files.left_out[0], 40)}"
    if not files.image_names:
        raise ValueError(f"no images in {shown}, but {others}; {ALLOWED}")
    if channels_first:
        raise ValueError(f"channels_first is for .npy and .npz, {shown} is none; leave it out")
    if files.left_out:
        text = f"{shown}: {len(files.image_names):,} images; left out {others}"
        print(text, file=sys.stderr)
    return ImageFiles(name, files, image_size)


def _files(path: Path) -> Container | None:
    """The image files at a path, by its content; None for arrays of a sample set."""
    if path.is_dir():
        database = path / "data.mdb"
        return lmdb_files(database.resolve()) if database.is_file() else folder_files(path)
    head = first_bytes(path)
    if head.startswith(np.lib.format.MAGIC_PREFIX):
        return None
    if head[16:20] == LMDB_MAGIC:
        return lmdb_files(path.resolve())
    if not zipfile.is_zipfile(path):
        fault = f"starts with {head[:10]!r}; {ALLOWED}"
        if head.startswith(b"PK"):
            fault = "is a zip or .npz that is cut off; copy or write it again"
        elif IMAGE_START.match(head):
            fault = "is a single image; put images into a folder"
        raise ValueError(f"{short(path, 80)} is not a data set, it {fault}")
    files = zip_files(path)
    is_arrays = not files.image_names and any(x.endswith(".npy") for x in files.left_out)
    return None if is_arrays else files


def load_dataset(source: str | Path, name: str | None = None) -> ImageDataset:
    """Images behind a name or a path, in memory; see `open_images`."""
    return _in_memory(open_images(source, name))


def training_images(
    source: str | Path, image_size: int, channels_first: bool = False
) -> ImageSource:
    """Images for a network of `image_size` px, see `open_images`; many in files stay there."""
    images = open_images(source, None, image_size, channels_first)
    on_demand = isinstance(images, ImageFiles) and math.prod(images.shape) > MAX_BYTES_IN_MEMORY
    return images if on_demand else _in_memory(images)


def _in_memory(source: ImageSource) -> ImageDataset:
    if isinstance(source, ImageDataset):
        return source
    images, firsts = np.empty(source.shape, np.uint8), range(0, source.num_images, CHUNK_IMAGES)
    bar = progress_bar(firsts, desc=source.name, unit="k images", delay=2, leave=False)
    for first, batch in zip(bar, source.batches(CHUNK_IMAGES), strict=True):
        images[first : first + len(batch)] = batch
    return ImageDataset(source.name, images, source.labels)


def load_cifar10(split: str) -> ImageDataset:
    """CIFAR-10, "train" (50,000 images) or "test" (10,000), from its binary archive in the cache.

    torchvision reads the same images from pickled files by plain `pickle.load`, which could
    execute what they hold; this archive holds only bytes.
    """
    path = download(CIFAR10_URL, cache_folder() / "cifar-10-binary.tar.gz", CIFAR10_CHECKSUM)
    with tarfile.open(path) as archive:
        paths = [f"cifar-10-batches-bin/{name}.bin" for name in CIFAR10_FILES[split]]
        members = [member.read() for member in map(archive.extractfile, paths) if member]
    # A row is a label, then planes of red, green and blue.
    rows = np.frombuffer(b"".join(members), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = rows[:, 0].astype(np.int64)
    return ImageDataset(f"cifar10-{split}", np.ascontiguousarray(images), labels)


def synthetic(num_images: int = 512, size: int = 32, seed: int = 0) -> ImageDataset:
    """Smooth random colour gradients in two classes, for tests and trials without data."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(-1, 1, size)
    waves = np.stack([np.ones((size, size)), *np.meshgrid(grid, grid)])  # (3, H, W)
    weights = generator.normal(0, 60, (num_images, 3, 3))
    images = 127.5 + np.einsum("nck,khw->nhwc", weights, waves)
    labels = (weights[:, 0, 0] > 0).astype(np.int64)
    return ImageDataset("synthetic", images.clip(0, 255).astype(np.uint8), labels)
