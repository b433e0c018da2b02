"""Files in the formats of the Inception weights, with random contents.

Every BatchNorm has statistics far from the identity, and the weights keep activations at about 1,
so that a wrong fold, pool or branch shows in the features.
"""

import pathlib

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as torch_fidelity_inception
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cmrepro.files import sha256
from cmrepro.metrics.protocols import load_extractor_settings
from cmrepro.settings import Extractor as ExtractorSettings


def settings_with_file(name: str, path: pathlib.Path) -> ExtractorSettings:
    """The settings of an extractor with another file of weights."""
    settings = load_extractor_settings(name)
    weights = settings.weights.replace(file=str(path), checksum=f"sha256:{sha256(path)}")
    return settings.replace(weights=weights)


def random_inception_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Random weights with the names and shapes of torch-fidelity's file."""
    with monkeypatch.context() as patch:  # instead of the download
        patch.setattr(torch_fidelity_inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        weights = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if name.endswith("conv.weight"):
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
        elif ".bn." in name and name.endswith(("weight", "running_var")):
            weight.uniform_(0.5, 2, generator=generator)
        elif ".bn." in name and weight.is_floating_point():
            weight.normal_(0.1, 0.2, generator=generator)
    return weights


class StandIn(nn.Module):
    """A small network with the interface of NVIDIA's TorchScript Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 2048, 3, stride=8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = functional.interpolate(x, size=[299, 299], mode="bilinear")
        features = self.layers((x - 128) / 128).flatten(1)
        if return_features:
            return features
        return self.output(features).softmax(dim=1)


def save_stand_in(path: pathlib.Path) -> None:
    """Script a `StandIn` with random statistics and save it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StandIn().eval()
    norm, generator = network.layers[1], torch.Generator().manual_seed(0)
    norm.running_mean.normal_(generator=generator)  # type: ignore[union-attr,operator]
    norm.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr,operator]
    torch.jit.script(network).save(path)
