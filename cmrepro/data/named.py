"""Data sets known by name: CIFAR-10, synthetic."""

import tarfile

import numpy as np

from cmrepro.data.sources import ImageDataset
from cmrepro.files import cache_folder, download

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FILES = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}


def load_cifar10(split: str) -> ImageDataset:
    """CIFAR-10 from its official binary archive, downloaded to the cache once.

    torchvision reads the same images from pickled files by plain `pickle.load`, which could
    execute what they hold; this archive holds only bytes.

    Args:
        split: "train" (50,000 images) or "test" (10,000).

    Raises:
        ValueError: The archive cannot be downloaded, or is not the official one.
    """
    path = download(CIFAR10_URL, cache_folder() / "cifar-10-binary.tar.gz", CIFAR10_CHECKSUM)
    with tarfile.open(path) as archive:
        members = [archive.extractfile(f"cifar-10-batches-bin/{f}") for f in CIFAR10_FILES[split]]
        records = np.frombuffer(b"".join(member.read() for member in members if member), np.uint8)
    rows = records.reshape(-1, 1 + 3 * 32 * 32)  # label, then planes of red, green, blue
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
