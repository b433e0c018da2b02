"""Checkpoints by name: the known ones, the contents of one, the model of one; own modules."""

import functools
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from msgspec.structs import asdict
from torch import Tensor, nn

from cmrepro.checkpoints import convert
from cmrepro.checkpoints.io import bundled_checkpoints, read_info
from cmrepro.checkpoints.locate import weights_files
from cmrepro.checkpoints.registry import released, released_checkpoints
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.files import make_folder, sha256
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.records import Checkpoint, CheckpointInfo, SampleProvenance


class CheckpointModel(PreconditionedModel):
    """The model of a checkpoint, with its file and header."""

    def __init__(self, network: nn.Module, path: Path, info: CheckpointInfo) -> None:
        super().__init__(network, info.parameterization, info.sigma_data, info.sigma_min)
        self.path, self.info = path, info

    @property
    def image_size(self) -> int:
        """H = W of its images."""
        return IMAGE_SIZES[self.info.network]

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Header, file name and checksum, for the provenance of its samples."""
        checksum = sha256(*weights_files(self.path))
        return Checkpoint(**asdict(self.info), file=self.path.name, sha256=checksum)

    @property
    def provenance(self) -> SampleProvenance:
        """Name and checkpoint, for the provenance of its samples."""
        return SampleProvenance(model=self.path.stem, checkpoint=self.checkpoint)

    def __repr__(self) -> str:
        function = "f" if self.parameterization == "boundary" else "D"
        return f"CheckpointModel({self.path.stem}, {function}(x_t, t), {self.image_size} px)"


class WrappedModel(nn.Module):
    """Any f(x_t, t), which is sampled like the model of a checkpoint."""

    def __init__(
        self,
        module: nn.Module,
        image_size: int,
        num_classes: int,
        info: CheckpointInfo,
        provenance: SampleProvenance,
    ) -> None:
        super().__init__()
        self.module, self.image_size, self.num_classes = module, image_size, num_classes
        self.info, self.provenance, self.sigma_min = info, provenance, info.sigma_min

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of noisy ones and their times (B,), by the module."""
        x: Tensor = self.module(x_t, t) if labels is None else self.module(x_t, t, labels)
        if not isinstance(x, Tensor) or x.shape != x_t.shape or not torch.isfinite(x).all():
            found = f"{tuple(x.shape)} with NaN" if isinstance(x, Tensor) else type(x).__name__
            needed = f"a tensor {tuple(x_t.shape)} of finite values in [-1, 1]"
            raise ValueError(f"the module returned {found} at t = {t[0]:g}, needed is {needed}")
        return x.float()

    def __repr__(self) -> str:
        return f"WrappedModel({self.provenance.model}, {self.image_size} px)"


def load_model(name: str | Path, device: str | torch.device = "cpu") -> CheckpointModel:
    """The model of a checkpoint, in evaluation mode, float32, channels_last.

    `name` is that of a bundled or released checkpoint, or a path of any supported format.
    """
    path = find_checkpoint(name)
    weights, info = convert.read_checkpoint(path)
    network = build_network(info.network)
    network.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    model = CheckpointModel(network, path, info)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def find_checkpoint(name: str | Path) -> Path:
    """The file of a bundled or released name (converted on first use), or the path itself."""
    if (entry := released(name)) is None:
        return convert.local_checkpoint(name)
    make_folder(entry.converted.parent)
    # Processes of `torchrun` that need the same file convert it once.
    with FileLock(entry.converted.with_suffix(".lock")):
        return entry.converted if entry.converted.is_file() else convert.convert(entry.name)


def checkpoint_rows() -> list[dict[str, Any]]:
    """One row a bundled or released checkpoint: state, training, network, second time, size."""
    entries = {
        name: (read_info(path), "bundled", path.stat().st_size)
        for name, path in bundled_checkpoints().items()
    } | {name: (x, x.state, x.bytes_approx) for name, x in released_checkpoints().items()}
    facts = ("method", "distance", "dataset", "images_seen")
    return [
        {"name": name, "state": state}
        | {fact: getattr(entry.training, fact) for fact in facts}
        | {"network": entry.network, "two_step_time": entry.two_step_time, "bytes": size}
        | {"official_file": getattr(entry, "official_name", None)}
        for name, (entry, state, size) in entries.items()
    ]


def contents(name: str) -> dict[str, Any]:
    """Format, size and number of parameters of a checkpoint (as for `load_model`), and its header.

    Nothing is downloaded: the registry alone describes a released checkpoint that is not here.
    """
    entry = released(name)
    if entry and not entry.converted.is_file():
        return {"state": entry.state, "bytes": entry.bytes_approx} | entry.info_fields
    path = entry.converted if entry else convert.local_checkpoint(name)
    kind, weights, fields, step = convert.read_contents(path)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    return {
        "format": kind,
        "bytes": sum(file.stat().st_size for file in weights_files(path)),
        "num_parameters": sum(tensor.numel() for tensor in weights.values()),
        "dtype": ", ".join(sorted(types)),
        "step": step,
        **fields,
    }
