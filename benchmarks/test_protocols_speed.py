"""Speed of three protocols that share an extractor against one.

The pass over the images is what they share. With 50,000 images and InceptionV3 it is more than
99 % of the work. Here are 128 images, so the metrics are scaled down with it, to the first 64 of
the features and logits: then their share is of the same order.
"""

import numpy as np
from torch import nn

from cmrepro.data import ImageDataset
from cmrepro.metrics import accumulate, evaluate
from cmrepro.metrics.extractors import FeatureExtractor, load_extractor
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.settings import ReferenceMetadata

DIM, NUM_IMAGES = 64, 128


class First(nn.Module):
    """The first features and logits of a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        features, logits, _ = self.network(x)
        return features[:, :DIM], logits[:, :DIM], None


def test_three_protocols_over_one(benchmark, gate, monkeypatch):
    """All with FID, IS, precision and recall; other references and parts of IS."""
    embedded = load_protocol("embedded")
    settings = embedded.extractor.replace(feature_dim=DIM, num_logits=DIM)
    network = First(load_extractor(embedded.extractor).network)
    extractor = FeatureExtractor(settings, network)
    monkeypatch.setattr(accumulate, "load_extractor", lambda *_: extractor)
    tasks = []
    for seed in (1, 2, 3):
        real = np.random.default_rng(seed).standard_normal((NUM_IMAGES, DIM), np.float32)
        reference = ReferenceStatistics(
            real.mean(0, np.float64), np.cov(real, rowvar=False), real, ReferenceMetadata()
        )
        protocol = embedded.replace(
            name=f"protocol {seed}",
            extractor=settings,
            num_images=NUM_IMAGES,
            metrics=("fid", "is", "precision", "recall"),
            inception_score={"num_splits": seed, "shuffle": True, "seed": 2020},
            stored_features={"num_images": NUM_IMAGES, "seed": 0},
        )
        tasks.append(evaluate.Task(protocol, reference))
    images = ImageDataset(
        "random", np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
    )

    def three():
        return evaluate.score(images, tasks)

    def one():
        return evaluate.score(images, tasks[:1])

    three_scores = benchmark.pedantic(three, rounds=1, warmup_rounds=1)
    assert len(three_scores) == 3
    assert three_scores[:1] == one()
    gate.ratio("three protocols over one", three, one, at_most=1.1, pairs=3)
