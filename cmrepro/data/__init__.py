"""Image data sets: CIFAR-10, folders, zips, LMDB, tar shards, sample sets, synthetic.

Images are uint8 (N, H, W, 3). Files are taken in the order of their sorted names, so that image
number i is the same everywhere. A source gives its images in order, batch by batch, and by number;
it decodes only those that are asked for, so that it needs no more memory for more of them.
"""

from cmrepro.data.decoding import UnreadableImagesError
from cmrepro.data.named import load_cifar10, parse_cifar10, synthetic
from cmrepro.data.opening import (
    ReadableImages,
    TrainingImages,
    load_dataset,
    open_images,
    training_images,
)
from cmrepro.data.sources import (
    ImageDataset,
    ImageFiles,
    ImageSource,
    SampleSet,
    images_sha256,
)

__all__ = [
    "ImageDataset",
    "ImageFiles",
    "ImageSource",
    "ReadableImages",
    "SampleSet",
    "TrainingImages",
    "UnreadableImagesError",
    "images_sha256",
    "load_cifar10",
    "load_dataset",
    "open_images",
    "parse_cifar10",
    "synthetic",
    "training_images",
]
