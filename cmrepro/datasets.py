"""Image data sets in memory: CIFAR-10, folders and zips of images, sample sets, synthetic.

Images are uint8 (N, H, W, 3). Files are taken in the order of their sorted names, so that image
number i is the same everywhere.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.files import array_sha256, cache_folder, download

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CHECKSUM = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FILES = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}
CIFAR10_SIZE = 32


@dataclass(frozen=True)
class ImageDataset:
    """Images with their labels.

    Attributes:
        name: What records call it, e.g. "cifar10-train".
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, or None.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    def sha256(self) -> str:
        """Checksum of the pixels in their order."""
        return array_sha256(self.images)


def load_dataset(source: str | Path, name: str | None = None) -> ImageDataset:
    """The data set behind a name or a path.

    Args:
        source: "cifar10-train" or "cifar10-test" (downloaded once), "synthetic", or the path of a
            folder or zip of images (class folders or EDM's dataset.json give labels) or of a
            sample set (.npz with `arr_0`).
        name: Name in records; the file's own by default.

    Raises:
        ValueError: Nothing is there, or it is none of these.
    """
    text = str(source)
    if text in ("cifar10-train", "cifar10-test"):
        return load_cifar10(text.removeprefix("cifar10-"))
    if text == "synthetic":
        return synthetic()
    path = Path(source)
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        return _decode(name or path.name, files, lambda file: (path / file).read_bytes())
    if path.suffix == ".zip" and path.is_file():
        return _load_zip(path, name or path.stem)
    if path.suffix == ".npz" and path.is_file():
        return load_sample_set(path, name)
    raise ValueError(
        f"no data set at '{source}'; allowed are cifar10-train, cifar10-test, synthetic, a folder "
        "or .zip of images, or an .npz sample set"
    )


def load_sample_set(path: str | Path, name: str | None = None) -> ImageDataset:
    """Images of an ADM-style file: `arr_0` uint8 (N, H, W, 3), optional `arr_1` int labels (N,).

    Raises:
        ValueError: Not such a file.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["arr_0"]
            labels = arrays.get("arr_1")
    except Exception as error:  # numpy, zipfile and zlib each raise their own kinds
        raise ValueError(
            f"{path} is not a sample set ({error}); allowed is .npz with arr_0 uint8 (N, H, W, 3)"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"{path} holds arr_0 {images.dtype} {images.shape}; allowed is uint8 (N, H, W, 3): "
            "round images in [-1, 1] by (127.5 * x + 127.5).round().clip(0, 255)"
        )
    if labels is None:
        return ImageDataset(name or path.stem, images)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path} holds arr_1 {labels.dtype} {labels.shape}; allowed are integer class numbers "
            f"{images.shape[:1]}"
        )
    return ImageDataset(name or path.stem, images, labels.astype(np.int64))


def load_cifar10(split: str) -> ImageDataset:
    """CIFAR-10 from its official binary archive, downloaded to the cache once.

    Args:
        split: "train" (50,000 images) or "test" (10,000).

    Raises:
        ValueError: The archive cannot be had, or is not the official one.
    """
    path = download(CIFAR10_URL, cache_folder() / "cifar-10-binary.tar.gz", CIFAR10_CHECKSUM)
    with tarfile.open(path) as archive:
        parts = []
        for file_name in CIFAR10_FILES[split]:
            member = archive.extractfile(f"cifar-10-batches-bin/{file_name}")
            assert member is not None  # the checksum above fixes the archive's members
            parts.append(np.frombuffer(member.read(), np.uint8))
    return parse_cifar10(np.concatenate(parts), f"cifar10-{split}")


def parse_cifar10(records: NDArray[np.uint8], name: str) -> ImageDataset:
    """Images from records of one label byte and 3,072 pixel bytes (red, green, blue planes)."""
    rows = records.reshape(-1, 1 + 3 * CIFAR10_SIZE**2)
    images = rows[:, 1:].reshape(-1, 3, CIFAR10_SIZE, CIFAR10_SIZE).transpose(0, 2, 3, 1)
    return ImageDataset(name, np.ascontiguousarray(images), rows[:, 0].astype(np.int64))


def synthetic(num_images: int = 512, size: int = 32, seed: int = 0) -> ImageDataset:
    """Smooth random colour gradients with a class each, for tests and trials without data."""
    generator = np.random.default_rng(seed)
    grid = np.linspace(-1, 1, size)
    waves = np.stack([np.ones((size, size)), *np.meshgrid(grid, grid)])  # (3, H, W)
    weights = generator.normal(0, 60, (num_images, 3, 3))
    images = 127.5 + np.einsum("nck,khw->nhwc", weights, waves)
    labels = (weights[:, 0, 0] > 0).astype(np.int64)
    return ImageDataset("synthetic", images.clip(0, 255).astype(np.uint8), labels)


Reader = Callable[[str], bytes]


def _load_zip(path: Path, name: str) -> ImageDataset:
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(n for n in archive.namelist() if not n.endswith("/"))
            return _decode(name, files, archive.read)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a whole zip file ({error}); fetch or write it again"
        ) from error


def _decode(name: str, file_names: list[str], read: Reader) -> ImageDataset:
    image_names = [n for n in file_names if Path(n).suffix.lower() in SUFFIXES]
    if not image_names:
        raise ValueError(
            f"no images in '{name}'; allowed are files ending in {', '.join(sorted(SUFFIXES))}"
        )
    first = _decode_image(image_names[0], read)
    images = np.empty((len(image_names), *first.shape), np.uint8)
    for i, file_name in enumerate(image_names):
        image = _decode_image(file_name, read)
        if image.shape != first.shape:
            raise ValueError(
                f"'{name}' mixes sizes: {image_names[0]} is {first.shape[:2]}, {file_name} is "
                f"{image.shape[:2]}; resize the images beforehand"
            )
        images[i] = image
    return ImageDataset(name, images, _labels(image_names, file_names, read))


def _decode_image(file_name: str, read: Reader) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(read(file_name))) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow, zipfile and zlib each raise their own kinds
        raise ValueError(
            f"{file_name} cannot be decoded ({error}); replace or remove it"
        ) from error
    if mode != "RGB":
        raise ValueError(f"{file_name} is {mode}, allowed is RGB; convert the images beforehand")
    return pixels


def _labels(
    image_names: list[str], file_names: list[str], read: Reader
) -> NDArray[np.int64] | None:
    """Labels of EDM's dataset.json, or of class folders in sorted order, or None."""
    if "dataset.json" in file_names:
        return _json_labels(image_names, read("dataset.json"))
    folders = [Path(n).parent.as_posix() for n in image_names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return None
    return np.array([classes.index(f) for f in folders], np.int64)


def _json_labels(image_names: list[str], text: bytes) -> NDArray[np.int64] | None:
    try:
        entries = json.loads(text)["labels"]
        by_name = None if entries is None else dict(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"dataset.json cannot be read ({type(error).__name__}: {error}); allowed is "
            '{"labels": [[FILE, CLASS], …]} or {"labels": null}'
        ) from error
    if by_name is None:
        return None
    if unmatched := sorted(by_name.keys() ^ set(image_names), key=str):
        raise ValueError(
            f"dataset.json and the images differ by {len(unmatched)} names, the first is "
            f"{unmatched[0]}; every image needs a label and every label an image"
        )
    for file_name, label in by_name.items():
        if type(label) is not int:
            raise ValueError(
                f"dataset.json has label {label!r} for {file_name}; allowed are integers"
            )
    return np.array([by_name[n] for n in image_names], np.int64)
