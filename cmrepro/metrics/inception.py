"""InceptionV3 of 2015-12-05, the network behind FID: torch-fidelity's, with fused batch norms.

ADM's spatial features are the first 7 channels of `mixed_6/conv` of the TensorFlow graph, which is
the 1x1 convolution (with its ReLU) of Mixed_6d.

References:
    Szegedy et al. (2016), https://arxiv.org/abs/1512.00567; the names of both sides:
    github.com/toshas/torch-fidelity, utils/util_convert_inception_weights.py; the spatial
    features: github.com/openai/guided-diffusion, evaluations/evaluator.py.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

SPATIAL_CHANNELS = 7  # at 17 x 17 positions nearly as many values as the pooled features


class InceptionV3(nn.Module):
    """torch-fidelity's network from scaled pixels on, in channels_last."""

    def __init__(self, path: Path) -> None:  # torch-fidelity's (pytorch-fid's) file of weights
        super().__init__()
        torch.load(path, map_location="cpu", weights_only=True)  # the next line runs any code
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        ).double()
        for module in network.modules():
            if isinstance(module, BasicConv2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        *layers, self.classes = network.float().children()
        self.layers = nn.Sequential(*layers)
        network.Mixed_6d.branch1x1.register_forward_hook(self._take_spatial)
        self.to(memory_format=torch.channels_last)

    def _take_spatial(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, 2048), logits without bias (B, 1008) and spatial features (B, 2023).

        x is (B, 3, 299, 299), about -1 to 1.
        """
        features = self.layers(x.contiguous(memory_format=torch.channels_last)).flatten(1)
        spatial = self._spatial.permute(0, 2, 3, 1).flatten(1)  # (B, 17 x 17 x 7)
        return features, functional.linear(features, self.classes.weight), spatial
