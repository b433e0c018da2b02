import re

import numpy as np
import pytest
from PIL import Image

from cmrepro.files import array_sha256
from cmrepro.metrics.extractors import Extractor, load_extractor
from cmrepro.metrics.features import BATCH_SIZE, extract
from cmrepro.metrics.protocols import load_extractor_settings


def random_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: noise on a coarse grid, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size))) for x in coarse])


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor(load_extractor_settings("efficientnet-lite0"))


def test_features_do_not_depend_on_the_number_of_images(extractor: Extractor) -> None:
    images = random_images(11)
    all_of_them = extract(images, extractor, batch_size=4)
    some = extract(images[:6], extractor, batch_size=4)
    assert all_of_them.logits is not None and some.logits is not None
    np.testing.assert_array_equal(some.features, all_of_them.features[:6])
    np.testing.assert_array_equal(some.logits, all_of_them.logits[:6])
    for image, row in zip(images, all_of_them.features, strict=True):
        alone = extract(image[None], extractor, batch_size=4)
        np.testing.assert_array_equal(alone.features[0], row)


def test_features_do_not_depend_on_the_batch_size(extractor: Extractor) -> None:
    images = random_images(11)
    one, all_at_once = (extract(images, extractor, batch_size=size) for size in (1, 16))
    # Convolutions choose their blocking by the batch: rounding only.
    scale = np.abs(one.features).max()
    np.testing.assert_allclose(one.features, all_at_once.features, atol=1e-5 * scale)
    assert array_sha256(one.features) != array_sha256(one.features[:-1])


def test_images_keep_their_order_over_batches(extractor: Extractor) -> None:
    images = np.concatenate([random_images(3)] * 24)  # more than one batch and not a whole number
    assert len(images) % BATCH_SIZE and len(images) > BATCH_SIZE
    features = extract(images, extractor).features
    np.testing.assert_array_equal(features, np.concatenate([features[:3]] * 24))
    assert len({array_sha256(row) for row in features[:3]}) == 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "images are float32, must be a uint8 array"),
        (np.full((2, 8, 8, 3), np.nan), "images are float64, must be a uint8 array"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\), must be \(N, H, W, 3\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"shape \(2, 8, 8, 1\), .*convert to RGB"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\), .*convert to RGB"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "N >= 1"),
        ([[1]], "images are list"),
    ],
)
def test_other_arrays_are_refused(images: np.ndarray, message: str, extractor: Extractor) -> None:
    with pytest.raises(ValueError) as error:
        extract(images, extractor)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_a_batch_size_below_one_is_refused(extractor: Extractor) -> None:
    with pytest.raises(ValueError, match="batch_size is 0, must be at least 1"):
        extract(random_images(1), extractor, batch_size=0)
