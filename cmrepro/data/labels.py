"""Class labels of image files."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cmrepro.data.decoding import Reader

WNID = re.compile(r"n\d{8}(?=_)")  # ImageNet's class names, e.g. n01440764_10026.JPEG


def labels_of(
    image_names: Sequence[str], file_names: Sequence[str], read: Reader
) -> NDArray[np.int64] | None:
    """Labels of EDM's dataset.json; or of class folders, or ImageNet's class names, in order.

    Args:
        image_names: Names of the images.
        file_names: Names of all files beside them.
        read: Gives a file's bytes by name.

    Returns:
        (N,), or None where there is no sign of classes.

    Raises:
        ValueError: dataset.json cannot be read or does not fit the images.
    """
    if "dataset.json" in file_names:
        return _json_labels(image_names, read("dataset.json"))
    classes = [str(PurePosixPath(name).parent) for name in image_names]
    if len(set(classes)) < 2:
        matches = [WNID.match(PurePosixPath(name).name) for name in image_names]
        classes = [match.group() for match in matches if match]
    numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
    if len(classes) < len(image_names) or len(numbers) < 2:
        return None
    return np.array([numbers[name] for name in classes], np.int64)


def _json_labels(image_names: Sequence[str], text: bytes) -> NDArray[np.int64] | None:
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
