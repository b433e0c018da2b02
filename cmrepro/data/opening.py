"""Images behind a name or a path: read on demand, in memory, for training."""

import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmrepro.data.containers import Container, FolderFiles, LmdbFiles, ZipFiles, labels_of
from cmrepro.data.decoding import SUFFIXES
from cmrepro.data.named import load_cifar10, synthetic
from cmrepro.data.sources import CHUNK_IMAGES, ImageDataset, ImageFiles, ImageSource, SampleSet

MAX_BYTES_IN_MEMORY = 1 << 30  # more images in files are decoded when a step needs them


def open_images(
    source: str | Path,
    name: str | None = None,
    image_size: int | None = None,
    max_unreadable: int = 0,
) -> ImageSource:
    """Images behind a name or a path; those in files are read when they are needed.

    Args:
        source: "cifar10-train" or "cifar10-test" (downloaded once), "synthetic", or the path of a
            folder or zip of images (EDM's dataset.json, class folders or ImageNet's file names
            give labels), of an LMDB (LSUN's format) or of a sample set (.npz with `arr_0`).
        name: Name in records; default: the file's name.
        image_size: Side in px to which images in files are brought; None: as they are.
        max_unreadable: Number of images in files that may be replaced because they cannot be
            decoded; their names are logged.

    Raises:
        ValueError: Nothing is there, or it is none of these.
    """
    path = Path(source)
    if (text := str(source)) in ("cifar10-train", "cifar10-test"):
        return load_cifar10(text.removeprefix("cifar10-"))
    if text == "synthetic":
        return synthetic()
    if path.suffix == ".npz" and path.is_file():
        return SampleSet(path, name or path.stem)
    files: Container
    if (path / "data.mdb").is_file():
        files = LmdbFiles(path)
        image_names, labels = files.names, None
    elif path.is_dir() or (path.suffix == ".zip" and path.is_file()):
        files = FolderFiles(path) if path.is_dir() else ZipFiles(path)
        image_names = [n for n in files.names if Path(n).suffix.lower() in SUFFIXES]
        labels = labels_of(image_names, files)
    else:
        found = f"'{source}' is not a data set" if path.exists() else f"no data set at '{source}'"
        raise ValueError(
            f"{found}; allowed are cifar10-train, cifar10-test, synthetic, a folder or .zip of "
            "images, an LMDB folder, or an .npz sample set"
        )
    if not image_names:
        raise ValueError(
            f"no images in {path}; allowed are files ending in {', '.join(sorted(SUFFIXES))}, or "
            "one LMDB folder"
        )
    name = name or (path.name if path.is_dir() else path.stem)
    return ImageFiles(name, image_names, files, labels, image_size, max_unreadable)


def load_dataset(source: str | Path, name: str | None = None) -> ImageDataset:
    """Images behind a name or a path, in memory; see `open_images`."""
    return _in_memory(open_images(source, name))


def training_images(source: str | Path, image_size: int, max_unreadable: int = 0) -> ImageSource:
    """Images for a network of `image_size` px, see `open_images`; many in files stay there."""
    images = open_images(source, None, image_size, max_unreadable)
    on_demand = isinstance(images, ImageFiles) and math.prod(images.shape) > MAX_BYTES_IN_MEMORY
    return images if on_demand else _in_memory(images)


def _in_memory(source: ImageSource) -> ImageDataset:
    if isinstance(source, ImageDataset):
        return source
    images = np.empty(source.shape, np.uint8)
    filled = 0
    with tqdm(total=len(images), desc=source.name, unit="image", delay=2, leave=False) as bar:
        for batch in source.batches(CHUNK_IMAGES):
            images[filled : filled + len(batch)] = batch
            filled += len(batch)
            bar.update(len(batch))
    return ImageDataset(source.name, images, source.labels)
