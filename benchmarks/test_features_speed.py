"""How fast are the extractors, against other tools on the same images in the same run?

Speed is judged as a ratio within one process, because machines differ. Measured on two cores:
InceptionV3 1.9 to 2.1 (1.6 to 1.8 where torch-fidelity takes our smaller batches),
EfficientNet-Lite0 2.2.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as torch_fidelity_inception
from efficientnet_lite_pytorch import EfficientNet
from pytest_benchmark.fixture import BenchmarkFixture
from timing import least_seconds
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cmrepro.metrics.extractors import Extractor, load_extractor
from cmrepro.metrics.features import BATCH_SIZE, extract
from cmrepro.metrics.inception import InceptionV3
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.metrics.weights import weights_file


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_inception(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 px per second, against torch-fidelity's with its batches of 64 and with ours.

    Random weights: the arithmetic is the same.
    """
    monkeypatch.setattr(torch_fidelity_inception, "load_state_dict_from_url", lambda *_, **__: {})
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        peer = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    settings = load_extractor_settings("inception-torch-fidelity")
    extractor = Extractor(settings, InceptionV3(peer.state_dict()))
    images = random_images(DEFAULTS["batch_size"])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def theirs(count: int, batch_size: int) -> None:
        for batch in pixels[:count].split(batch_size):
            peer(batch)

    benchmark.pedantic(extract, (images[:16], extractor), rounds=3, warmup_rounds=1)
    ratios = {}
    for count, batch_size in ((len(images), len(images)), (16, extractor.images_at_once)):
        our_s, their_s = least_seconds(
            partial(extract, images[:count], extractor),
            partial(theirs, count, batch_size),
            rounds=1,
        )
        ratios[batch_size] = their_s / our_s
        benchmark.extra_info[f"times as fast as torch-fidelity with {batch_size} at once"] = (
            ratios[batch_size]
        )
    assert ratios[DEFAULTS["batch_size"]] > 1.3


def test_efficientnet_lite0(benchmark: BenchmarkFixture) -> None:
    """Images per second from uint8 pixels, against the network as its package gives it."""
    settings = load_extractor_settings("efficientnet-lite0")
    extractor = load_extractor(settings)
    images = random_images(4 * BATCH_SIZE)
    size = settings.image_size
    unfolded = EfficientNet.from_name("efficientnet-lite0").eval()
    unfolded.load_state_dict(torch.load(weights_file(settings), weights_only=True))
    batches = torch.randn(4, BATCH_SIZE, 3, size, size)

    def ours() -> object:
        return extract(images, extractor)

    @torch.inference_mode()
    def theirs() -> None:
        for batch in batches:
            unfolded(batch)

    benchmark.pedantic(ours, rounds=3, warmup_rounds=1)
    our_s, their_s = least_seconds(ours, theirs, rounds=3)
    benchmark.extra_info["times as fast as the unfolded network"] = their_s / our_s
    assert their_s > 1.3 * our_s
