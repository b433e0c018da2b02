"""Read and write the project's checkpoints: safetensors with the metadata in its header."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.parameterization import Parameterization, PreconditionedModel
from cmrepro.files import atomic_path
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.schema import unknown

FORMAT = "cmrepro-checkpoint-1"
Shapes = Mapping[str, tuple[int, ...]]


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
        origin: How it came to be: command, commit, seed, steps, images seen, duration, data; of a
            converted file its source, and of a released one what is published of its training.
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
    """Write the weights of `network`, its parameters in `dtype`, with `info` in the header."""
    write_checkpoint(path, stored_weights(network.state_dict(), network, dtype), info)


def stored_weights(
    weights: Mapping[str, Tensor], network: nn.Module, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Weights as they are stored: parameters in `dtype`, buffers as they are.

    A buffer is a constant, e.g. the frequencies of a noise embedding, which rounding would ruin.

    Args:
        weights: Of `network`, by name.
        network: Tells parameters from buffers; may be on the meta device.
        dtype: Type of the parameters.
    """
    buffers = {name for name, _ in network.named_buffers()}
    return {
        name: tensor.detach().to("cpu", tensor.dtype if name in buffers else dtype).contiguous()
        for name, tensor in weights.items()
    }


def write_checkpoint(path: str | Path, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write contiguous weights on the CPU as they are, atomically, with `info` in the header.

    Raises:
        ValueError: The file cannot be written.
    """
    metadata = {"format": FORMAT, "info": json.dumps(asdict(info), sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(weights, temporary, metadata)
        except SafetensorError as error:  # the library's own form of the system's errors
            raise ValueError(
                f"cannot write {path} ({error}); free space or choose another folder"
            ) from error


def find_checkpoint(name: str | Path) -> Path:
    """The file of a bundled or released checkpoint's name, or the path itself.

    Raises:
        ValueError: Neither a known name nor a file; a folder; or a released checkpoint that is not
            converted yet (says the command that does it).
    """
    path, name = Path(name), str(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; a checkpoint is one file: make it from a diffusers folder with "
            "'cmrepro checkpoints convert'"
        )
    bundled, released = bundled_checkpoints(), released_checkpoints()
    if name in bundled:
        return bundled[name]
    if name in released:
        if not released[name].converted.is_file():
            raise ValueError(
                f"released checkpoint '{name}' is not converted yet (no file "
                f"{released[name].converted}); run 'cmrepro checkpoints convert {name}'"
            )
        return released[name].converted
    raise ValueError(unknown_checkpoint(name))


def unknown_checkpoint(name: str) -> str:
    """The text of the error for a name that is no file, bundled or released checkpoint."""
    bundled, released = bundled_checkpoints(), released_checkpoints()
    nearest = difflib.get_close_matches(name, [*bundled, *released], n=1, cutoff=0.5)
    known = released if nearest and nearest[0] in released else bundled
    text = unknown("checkpoint (no such file either)", name, known)
    return f"{text}; 'cmrepro checkpoints list' shows all"


def bundled_checkpoints() -> dict[str, Path]:
    """Checkpoints that come with the package: name -> file."""
    folder = Path(str(resources.files(__package__) / "bundled"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The text fields in the header of a safetensors file, without its weights.

    Raises:
        ValueError: Truncated, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again; one of "
            "another format is made into a checkpoint by 'cmrepro checkpoints convert'"
        ) from error


def read_info(path: str | Path) -> CheckpointInfo:
    """The header of a checkpoint, without its weights.

    Raises:
        ValueError: Truncated, not safetensors, or written by another program.
    """
    metadata = read_safetensors_metadata(path)
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped: they take memory when they are used."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


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
        name: A bundled or converted released checkpoint's name, or a path.
        device: Where to put it.

    Raises:
        ValueError: Unknown name, broken file, or weights of another network (names one).
    """
    path = find_checkpoint(name)
    info = read_info(path)
    network = build_network(info.network)
    weights = {key: tensor.float() for key, tensor in read_weights(path).items()}
    check_parameters(network.state_dict(), weights, str(path), info.network)
    network.load_state_dict(weights)
    model = CheckpointModel(network, path, info)
    return model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def check_parameters(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str, network_name: str
) -> None:
    """Refuse weights whose names or shapes are not the expected ones.

    Raises:
        ValueError: Names the missing, surplus and misshapen parameters.
    """
    shapes = ({key: tuple(t.shape) for key, t in side.items()} for side in (expected, weights))
    if problem := parameter_differences(*shapes):
        raise ValueError(
            f"{source} is not of network '{network_name}': it {problem}; "
            "use a checkpoint of this network"
        )


def parameter_differences(expected: Shapes, got: Shapes) -> str:
    """What `got` lacks, has besides, and has in another shape; empty where they agree."""
    problems = []
    if missing := sorted(expected.keys() - got.keys()):
        problems.append(f"lacks parameter {some_names(missing)}")
    if surplus := sorted(got.keys() - expected.keys()):
        problems.append(f"has a surplus parameter {some_names(surplus)}")
    for key in sorted(expected.keys() & got.keys()):
        if got[key] != expected[key]:
            problems.append(f"has {key} {got[key]}, not {expected[key]}")
            break
    return ", it ".join(problems)


def some_names(names: Sequence[str]) -> str:
    """The first name, and in brackets two more and how many follow."""
    first, *others = names
    more = [f"{len(others) - 2} more"] if len(others) > 2 else []
    return f"{first} (and {', '.join([*others[:2], *more])})" if others else first
