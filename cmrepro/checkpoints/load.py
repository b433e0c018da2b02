"""One way from a name to a model."""

import functools
from pathlib import Path

import torch
from filelock import FileLock
from msgspec.structs import asdict
from torch import nn

from cmrepro.checkpoints.convert import convert, local_checkpoint, read_checkpoint
from cmrepro.checkpoints.formats import weights_file
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.files import make_folder, sha256
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.records import Checkpoint, CheckpointInfo


class CheckpointModel(PreconditionedModel):
    """The model of a checkpoint, with its file and header."""

    def __init__(self, network: nn.Module, path: Path, info: CheckpointInfo) -> None:
        super().__init__(network, info.parameterization, info.sigma_data, info.sigma_min)
        self.path = path
        self.info = info

    @property
    def image_size(self) -> int:
        """H = W of its images."""
        return IMAGE_SIZES[self.info.network]

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Header, file name and checksum, for the provenance of its samples."""
        checksum = sha256(weights_file(self.path))
        return Checkpoint(**asdict(self.info), file=self.path.name, sha256=checksum)


def find_checkpoint(name: str | Path) -> Path:
    """The file of a bundled or released checkpoint's name, or the path itself.

    A released checkpoint is downloaded and converted into the cache on first use.
    """
    entry = released_checkpoints().get(str(name))
    if entry is None or Path(name).exists():
        return local_checkpoint(name)
    make_folder(entry.converted.parent)
    # Processes of `torchrun` that need the same file convert it once.
    with FileLock(entry.converted.with_suffix(".lock")):
        return entry.converted if entry.converted.is_file() else convert(entry.name)


def load_model(name: str | Path, device: str | torch.device = "cpu") -> CheckpointModel:
    """The model of a checkpoint, in evaluation mode, float32, channels_last.

    Args:
        name: Name of a bundled or released checkpoint, or the path of a file or folder of any
            supported format.
        device: Device of its parameters.

    Raises:
        ValueError: Unknown name, broken file, or weights of another network (names one).
    """
    path = find_checkpoint(name)
    weights, info = read_checkpoint(path)
    network = build_network(info.network)
    network.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    model = CheckpointModel(network, path, info)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
