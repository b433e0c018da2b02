"""Read and write the project's checkpoints: safetensors with the metadata in its header."""

import json
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.files import atomic_path
from cmrepro.names import unknown
from cmrepro.networks.presets import IMAGE_SIZES, build_network

FORMAT = "cmrepro-checkpoint-1"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        network: Name of the network preset.
        parameterization: "boundary" (f) or "edm" (D).
        sigma_data: Standard deviation of the data.
        sigma_min: The paper's epsilon.
        sigma_max: The paper's T.
        recipe: All fields of the recipe, or empty for a model trained elsewhere.
        origin: How it came to be: command, commit, seed, steps, images seen, duration, data.
        two_step_time: Second sampling time of a consistency function, where one was chosen.
        selection: How the checkpoint and that time were chosen.
    """

    network: str
    parameterization: Parameterization
    sigma_data: float
    sigma_min: float
    sigma_max: float
    recipe: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    two_step_time: float | None = None
    selection: str = "last checkpoint"


def save_checkpoint(
    path: str | Path, network: nn.Module, info: CheckpointInfo, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of `network`, in `dtype`, with `info` in the header."""
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {"format": FORMAT, "info": json.dumps(asdict(info), sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata)


def find_checkpoint(name: str | Path) -> Path:
    """The file of a bundled checkpoint's name, or the path itself.

    Raises:
        ValueError: Neither a bundled name nor a file.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_checkpoints()
    if str(name) not in bundled:
        raise ValueError(unknown("checkpoint (no such file either)", str(name), bundled))
    return bundled[str(name)]


def bundled_checkpoints() -> dict[str, Path]:
    """Checkpoints that come with the package: name -> file."""
    folder = Path(str(resources.files(__package__) / "bundled"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def read_info(path: str | Path) -> CheckpointInfo:
    """The header of a checkpoint, without its weights.

    Raises:
        ValueError: Truncated, not safetensors, or written by another program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format '{metadata.get('format', 'none')}', allowed is '{FORMAT}'; "
            "only checkpoints written by cmrepro can be loaded"
        )
    try:
        return CheckpointInfo(**json.loads(metadata["info"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has a broken header ({type(error).__name__}: {error}); copy or download it "
            "again"
        ) from error


class CheckpointModel(PreconditionedModel):
    """The model of a checkpoint, with the file it came from and what that says of itself."""

    def __init__(self, network: nn.Module, path: Path, info: CheckpointInfo) -> None:
        super().__init__(network, info.parameterization, info.sigma_data, info.sigma_min)
        self.path = path
        self.info = info

    @property
    def image_size(self) -> int:
        """H = W of its images."""
        return IMAGE_SIZES[self.info.network]


def load_model(name: str | Path, device: str | torch.device = "cpu") -> CheckpointModel:
    """The model of a checkpoint, in evaluation mode, float32, channels_last.

    Args:
        name: A bundled checkpoint's name or a path.
        device: Where to put it.

    Raises:
        ValueError: Unknown name, broken file, or weights of another network (names one).
    """
    path = find_checkpoint(name)
    info = read_info(path)
    network = build_network(info.network)
    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    check_weights(network, weights, str(path), info.network)
    network.load_state_dict(weights)
    model = CheckpointModel(network, path, info)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def convert_checkpoint(
    source: str | Path,
    path: Path,
    dtype: torch.dtype,
    two_step_time: float | None = None,
    selection: str | None = None,
) -> None:
    """Write a checkpoint again in another number format, optionally with its second sampling time.

    Args:
        source: A bundled checkpoint's name or a path.
        path: File to write.
        dtype: float32, float16 or bfloat16.
        two_step_time: Kept as it is where None.
        selection: Kept as it is where None.

    Raises:
        ValueError: See `load_model`; or a time outside the model's range.
    """
    model = load_model(source)
    info = model.info
    if two_step_time is not None:
        if not info.sigma_min < two_step_time < info.sigma_max:
            raise ValueError(
                f"got two-step time {two_step_time:g}; allowed is between {info.sigma_min:g} and "
                f"{info.sigma_max:g}"
            )
        info = replace(info, two_step_time=two_step_time)
    if selection is not None:
        info = replace(info, selection=selection)
    save_checkpoint(path, model.network, info, dtype)


def check_weights(
    network: nn.Module, weights: dict[str, torch.Tensor], source: str, network_name: str
) -> None:
    """Refuse weights whose names or shapes are not the network's.

    Raises:
        ValueError: Names the first missing, surplus or misshapen parameter.
    """
    expected = network.state_dict()
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights:
            problem = f"lacks parameter {key}"
        elif key not in expected:
            problem = f"has a surplus parameter {key}"
        elif weights[key].shape != expected[key].shape:
            problem = f"has {key} {tuple(weights[key].shape)}, not {tuple(expected[key].shape)}"
        else:
            continue
        raise ValueError(
            f"{source} is not of network '{network_name}': it {problem}; "
            "use a checkpoint of this network"
        )
