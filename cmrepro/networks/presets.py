"""The networks by name: the released configurations and the demo's small one."""

import dataclasses

from torch import nn

from cmrepro.networks.adm import ADMConfig, PatchUNet, UNet
from cmrepro.networks.ncsnpp import NCSNpp, NCSNppConfig
from cmrepro.schema import lookup

# Sources: scripts/launch.sh and cm/script_util.py of openai/consistency_models at e32b69e.
ADM_IMAGENET64 = ADMConfig(192, (1, 2, 3, 4), 3, (2, 4, 8), 64, num_classes=1000)
ADM_LSUN256 = ADMConfig(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 64, use_scale_shift_norm=False)
# configs/cifar10_*.py of openai/consistency_models_cifar10 at d086e77.
NCSNPP_CIFAR10 = NCSNppConfig(128, (2, 2, 2), 4)
# The demo's: 0.24 GFLOP an image and 3.0 M parameters: a 2-core CPU samples some 400 images
# a second. Normalisation groups have at least 4 channels, as in EDM: 32 groups would normalise
# each of the 32 channels of the first level by itself.
PATCH_UNET = ADMConfig(32, (1, 2, 4), 1, (2,), 32, in_channels=12, min_group_channels=4)

PRESETS: dict[str, tuple[type[nn.Module], ADMConfig | NCSNppConfig]] = {
    "adm-imagenet64": (UNet, ADM_IMAGENET64),
    "adm-lsun256": (UNet, ADM_LSUN256),
    "ncsnpp-cifar10": (NCSNpp, NCSNPP_CIFAR10),
    "patch-unet": (PatchUNet, PATCH_UNET),
}
IMAGE_SIZES = {"adm-imagenet64": 64, "adm-lsun256": 256, "ncsnpp-cifar10": 32, "patch-unet": 32}

# Their official sampler clips D to [-1, 1] (scripts/image_sample.py); that of CIFAR-10 and EDM's
# own do not (deviation `heun-clipping`).
CLIPPED_DENOISERS = ("adm-imagenet64", "adm-lsun256")


def build_network(name: str, dropout: float = 0.0) -> nn.Module:
    """Build the network of a preset with fresh weights."""
    network_class, config = lookup("network", name, PRESETS)
    return network_class(dataclasses.replace(config, dropout=dropout))
