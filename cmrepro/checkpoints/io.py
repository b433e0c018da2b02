"""Read and write the project's checkpoints: safetensors with the metadata in its header."""

import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import asdict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.files import atomic_path, sha256
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.records import Checkpoint, CheckpointInfo
from cmrepro.schema import convert, to_builtins, unknown

FORMAT = "cmrepro-checkpoint-2"
FORMAT_1 = "cmrepro-checkpoint-1"
Shapes = Mapping[str, tuple[int, ...]]


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
    metadata = {"format": FORMAT, "info": json.dumps(to_builtins(info), sort_keys=True)}
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
    if metadata.get("format") == FORMAT_1:
        return info_from_format_1(json.loads(metadata["info"]))
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format '{metadata.get('format', 'none')}', allowed is '{FORMAT}'; "
            "only checkpoints written by cmrepro can be loaded"
        )
    try:
        return convert(CheckpointInfo, json.loads(metadata["info"]), "")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has a broken header ({type(error).__name__}: {error}); copy or download it "
            "again"
        ) from error


def convert_header_1(path: Path) -> None:
    """Replace the header of a checkpoint of format 1 by one of format 2; weights stay.

    Temporary: deleted when the bundled files are converted.
    """
    metadata = read_safetensors_metadata(path)
    if metadata.get("format") == FORMAT_1:
        info = info_from_format_1(json.loads(metadata["info"]))
        write_checkpoint(path, {k: t.clone() for k, t in read_weights(path).items()}, info)


def info_from_format_1(fields: dict[str, Any]) -> CheckpointInfo:
    """A header of format 1 as one of format 2, of our own trainings. Temporary, as above."""
    recipe, origin = fields["recipe"], fields["origin"]
    info = {key: fields[key] for key in ("network", "parameterization", "sigma_data")}
    info |= {key: fields[key] for key in ("sigma_min", "sigma_max", "two_step_time")}
    rule, _, searched = fields["selection"].partition("; second time ")
    if searched:
        found = re.search(
            r"least (\w+) of (\d+) by (\w+) search under (\w+) v(\d+) "
            r"on (\d+) images of seed (\d+)",
            searched,
        )
        assert found
        info["two_step_selection"] = {
            "rule": f"least {found[1]} of {found[2]} candidates",
            "metric": found[1],
            "search": found[3],
            "protocol": f"{found[4]}-v{found[5]}",
            "num_images": int(found[6]),
            "seeds": [int(found[7])],
        }
    info["selection"] = {"rule": rule}
    if recipe:
        name = recipe["name"]
        scale = {
            "scale": "demo" if name.startswith("demo-") else "paper",
            "stands_for": name.removeprefix("demo-"),
        }
        info["recipe"] = recipe | scale
        of_recipe = ("method", "initialisation", "ema_rate", "distance", "batch_size")
        of_origin = ("weights", "images_seen", "seed", "teacher", "teacher_sha256", "precision")
        of_machine = ("command", "cmrepro", "commit", "dirty", "python", "packages", "platform")
        info["training"] = (
            scale
            | {key: recipe[key] for key in of_recipe}
            | {key: origin.get(key) for key in of_origin}
            | {
                "dataset": origin["data"],
                "dataset_sha256": origin["data_sha256"],
                "total_steps": origin["steps"],
                "num_processes": origin.get("processes"),
                "duration_s": origin["duration_s"],
                "provenance": {k: origin[k] for k in (*of_machine, "cpu", "threads", "gpu")},
            }
        )
    return convert(CheckpointInfo, info, "")


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

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Header, file name and checksum, for the provenance of its samples."""
        return Checkpoint(**asdict(self.info), file=self.path.name, sha256=sha256(self.path))


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
