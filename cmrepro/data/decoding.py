"""Encoded images to pixels."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}

Reader = Callable[[str], bytes]


class UnreadableImageError(ValueError):
    """An image file that cannot be read or decoded; the text names file and problem."""


def decode(name: str, read: Reader, image_size: int | None) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image file.

    Args:
        name: Name of the file.
        read: Function that gives its bytes.
        image_size: Convert to RGB and bring to this size by `centre_square`, as the official code
            does; None: as it is.

    Raises:
        UnreadableImageError: The file cannot be read or decoded.
        ValueError: `image_size` is None and the image is not RGB.
    """
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            if image_size is not None:
                return centre_square(image.convert("RGB"), image_size)
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow, zipfile and zlib each raise their own kinds
        raise UnreadableImageError(f"{name} ({error})") from error
    if mode != "RGB":
        raise ValueError(f"{name} is {mode}, allowed is RGB; convert the images beforehand")
    return pixels


def encoded_size(name: str, read: Reader) -> tuple[int, int]:
    """Height and width of an image file, from its header; see `decode`."""
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            return image.height, image.width
    except Exception as error:  # as in `decode`
        raise UnreadableImageError(f"{name} ({error})") from error


def centre_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Central square (size, size, 3) of an RGB image, resized as for ADM and the official code.

    The image is halved with the box filter while its shorter side is at least 2 * size, resized to
    it with the bicubic filter, and cropped (Dhariwal and Nichol 2021; `center_crop_arr` in
    openai/guided-diffusion at 81916c0, MIT licence, which openai/consistency_models uses). LSUN's
    images, whose shorter side is 256, are only cropped.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
