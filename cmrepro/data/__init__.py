"""Image data sets: CIFAR-10, synthetic, folders, zips, LMDB, sample sets.

Images are uint8 (N, H, W, 3). Files are in the order of their sorted names, so that image i is the
same everywhere; they are decoded when they are needed, so that memory does not grow with N.
"""

from cmrepro.data.opening import load_dataset, open_images, synthetic, training_images
from cmrepro.data.sources import ImageDataset, ImageSource, images_sha256
