"""Images behind a name or a path: read on demand, in memory, for training."""

import math
import tarfile
from pathlib import Path

import numpy as np

from cmrepro.data.containers import SUFFIXES, folder_files, lmdb_files, zip_files
from cmrepro.data.sources import CHUNK_IMAGES, ImageDataset, ImageFiles, ImageSource, SampleSet
from cmrepro.files import cache_folder, download
from cmrepro.progress import progress_bar

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
MAX_BYTES_IN_MEMORY = 1 << 30  # more images in files are decoded when a step needs them


def open_images(
    source: str | Path, name: str | None = None, image_size: int | None = None
) -> ImageSource:
    """Images behind a name or a path; those in files are read when they are needed.

    `source` is "cifar10-train" or "cifar10-test" (downloaded once), "synthetic", or the path of a
    folder or zip of images (EDM's dataset.json, class folders or ImageNet's file names give
    labels), of an LMDB (LSUN's format) or of a sample set (.npz with `arr_0`); `name` stands in
    records. Images in files become squares of `image_size` px if it is not None.
    """
    path, text = Path(source), str(source)
    if text in ("cifar10-train", "cifar10-test"):
        return load_cifar10(text.removeprefix("cifar10-"))
    if text == "synthetic":
        return synthetic()
    if path.suffix == ".npz" and path.is_file():
        return SampleSet(path, name or path.stem)
    if (path / "data.mdb").is_file():
        files = lmdb_files(path.resolve())
    elif path.is_dir():
        files = folder_files(path)
    elif path.suffix == ".zip" and path.is_file():
        files = zip_files(path)
    else:
        found = f"'{source}' is not a data set" if path.exists() else f"no data set at '{source}'"
        raise ValueError(
            f"{found}; allowed are cifar10-train, cifar10-test, synthetic, a folder or .zip of "
            "images, an LMDB folder, or an .npz sample set"
        )
    if not files.image_names:
        raise ValueError(f"no images in {path}; allowed are {', '.join(sorted(SUFFIXES))}")
    name = name or (path.absolute().name if path.is_dir() else path.stem)
    return ImageFiles(name, files, image_size)


def load_dataset(source: str | Path, name: str | None = None) -> ImageDataset:
    """Images behind a name or a path, in memory; see `open_images`."""
    return _in_memory(open_images(source, name))


def training_images(source: str | Path, image_size: int) -> ImageSource:
    """Images for a network of `image_size` px, see `open_images`; many in files stay there."""
    images = open_images(source, None, image_size)
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
