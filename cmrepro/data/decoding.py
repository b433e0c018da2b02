"""Encoded images to pixels."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
NAMED_AT_MOST = 10  # unreadable images in the text of an error

Reader = Callable[[str], bytes]


class UnreadableImagesError(ValueError):
    """Images that cannot be read or decoded.

    Args:
        problems: What was wrong with each file, by its name.
        indices: Their numbers.
        advice: What to do about them.
    """

    def __init__(
        self,
        problems: Mapping[str, str],
        indices: tuple[int, ...] = (),
        advice: str = "replace or remove it",
    ) -> None:
        self.problems, self.indices = dict(problems), indices
        listed = [f"{name} ({problem})" for name, problem in problems.items()]
        if len(listed) == 1:
            [(name, problem)] = problems.items()
            text = f"{name} cannot be decoded ({problem})"
        else:
            more = ", …" if len(listed) > NAMED_AT_MOST else ""
            text = f"{len(listed)} images cannot be decoded: {', '.join(listed[:NAMED_AT_MOST])}"
            text += more
        super().__init__(f"{text}; {advice}")


def decode(name: str, read: Reader, image_size: int | None) -> NDArray[np.uint8]:
    """The pixels of one file.

    Args:
        name: Of the file.
        read: Gives its bytes.
        image_size: Bring the image to this size, see `centre_square`, and other kinds of images
            to RGB, as the official code does. None: as it is.

    Returns:
        (H, W, 3).

    Raises:
        UnreadableImagesError: The file cannot be read or decoded.
        ValueError: It is to be taken as it is, and not RGB.
    """
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            if image_size is not None:
                return centre_square(image.convert("RGB"), image_size)
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow, zipfile and zlib each raise their own kinds
        raise UnreadableImagesError({name: str(error)}) from error
    if mode != "RGB":
        raise ValueError(f"{name} is {mode}, allowed is RGB; convert the images beforehand")
    return pixels


def encoded_size(name: str, read: Reader) -> tuple[int, int] | None:
    """Height and width of one file's image, or None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            return image.height, image.width
    except Exception:  # as in `decode`, which names it when the image is asked for
        return None


def centre_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The square in the middle of an image, brought to a size as for ADM and the official code.

    The image is halved with the box filter as long as its shorter side is at least twice `size`,
    then brought to it by the bicubic one, and cut (Dhariwal and Nichol 2021; `center_crop_arr` in
    openai/guided-diffusion at 81916c0, MIT licence, which openai/consistency_models uses). LSUN's
    images, whose shorter side is 256, are only cut.

    Args:
        image: RGB.
        size: Side of the square, pixels.

    Returns:
        (size, size, 3).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
