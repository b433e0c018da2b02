"""Speed of the extractors against other tools' networks on the same images."""

import numpy as np
import torch
import torch_fidelity.feature_extractor_inceptionv3 as torch_fidelity_inception
from efficientnet_lite_pytorch import EfficientNet
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cmrepro.metrics.extractors import (
    BATCH_SIZE,
    FeatureExtractor,
    InceptionV3,
    extract,
    load_extractor,
    weights_file,
)
from cmrepro.metrics.protocols import load_extractor_settings


def random_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_inception_over_torch_fidelity(benchmark, gate, monkeypatch, tmp_path):
    """Of 32 px, in our batches of 8 on both sides. Random weights: the arithmetic is the same."""
    monkeypatch.setattr(torch_fidelity_inception, "load_state_dict_from_url", lambda *_, **__: {})
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        peer = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    file = tmp_path / "inception.pth"
    torch.save(peer.state_dict(), file)
    settings = load_extractor_settings("inception-torch-fidelity")
    extractor = FeatureExtractor(settings, InceptionV3(file))
    images = random_images(extractor.images_at_once)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def ours():
        return extract(images, extractor)

    @torch.inference_mode()
    def theirs():
        peer(pixels)

    benchmark.pedantic(ours, rounds=1)
    gate.ratio("Inception over torch-fidelity", ours, theirs, at_most=0.8, pairs=3)


def test_efficientnet_over_its_package(benchmark, gate):
    """From uint8 pixels, against the network as its package gives it."""
    settings = load_extractor_settings("efficientnet-lite0")
    extractor = load_extractor(settings)
    images = random_images(BATCH_SIZE)
    unfolded = EfficientNet.from_name("efficientnet-lite0").eval()
    unfolded.load_state_dict(torch.load(weights_file(settings), weights_only=True))
    batch = torch.randn(BATCH_SIZE, 3, settings.image_size, settings.image_size)

    def ours():
        return extract(images, extractor)

    @torch.inference_mode()
    def theirs():
        unfolded(batch)

    benchmark.pedantic(ours, rounds=2, warmup_rounds=1)
    gate.ratio("EfficientNet-Lite0 over its package", ours, theirs, at_most=0.8, pairs=3)
