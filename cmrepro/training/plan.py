"""What a training will take, measured in a few seconds before it starts."""

import functools
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmrepro.consistency.distances import LPIPS
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.data import synthetic
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.settings import Recipe
from cmrepro.training.batches import BatchSource
from cmrepro.training.step import Training, on_device

ENOUGH_S = 1.0  # a measurement that takes longer is not tried with more images


@dataclass(frozen=True)
class Measured:
    """What one device does with a recipe.

    Attributes:
        num_parameters: Of the network.
        held_bytes: Weights, averages, gradients, optimizer, teacher and distance.
        image_bytes: What an image adds until its gradient is there.
        image_flop: Of all passes of an image, forward and backward.
        images_per_s: Up to their gradients.
        update_s: Seconds of the optimizer's step and the averages.
        num_images: Images at once when the speed was measured.
    """

    num_parameters: int
    held_bytes: int
    image_bytes: int
    image_flop: int
    images_per_s: float
    update_s: float
    num_images: int


def plan(
    recipe: Recipe,
    device: str = "cpu",
    *,
    precision: str | None = None,
    micro_batch: int | None = None,
    compiled: bool = False,
) -> list[dict[str, str]]:
    """Memory, speed and duration of a recipe here, beside the hardware of the paper.

    All networks have random weights, LPIPS too, which needs no download for this; the images are
    synthetic.

    Args:
        recipe: What would be trained.
        device: Where it would be.
        precision: As for `Training`, like the next two.
        micro_batch: Images that go through the network at once.
        compiled: Compile the networks.

    Returns:
        Rows of quantity and value.

    Raises:
        ValueError: As `Training`.
    """
    where, teacher, distance = torch.device(device), None, None
    if recipe.distance in ("lpips", "lpips-average"):
        distance = on_device(RandomLPIPS(), where)
    if recipe.method == "cd" or recipe.initialisation == "teacher":
        teacher = PreconditionedModel(build_network(recipe.network), "edm", recipe.sigma_data)
        teacher = teacher.to(where).eval().requires_grad_(False)
    training = Training(
        recipe,
        0,
        teacher,
        device,
        precision=precision,
        micro_batch=micro_batch,
        compiled=compiled,
        distance=distance,
    )
    return plan_rows(training, measure(training))


class RandomLPIPS(LPIPS):
    """LPIPS with random weights: as large and as fast, but no measure of anything.

    Max pooling stands for both kinds.
    """

    def __init__(self) -> None:
        super().__init__(vgg16=Path(), linear=Path())

    def _read(self, path: Path, names: dict[str, str]) -> None:
        """Leave the weights as they were drawn."""


def plan_rows(training: Training, measured: Measured) -> list[dict[str, str]]:
    """Rows of quantity and value: what a measured device means for the whole recipe."""
    recipe, m = training.recipe, measured
    at_once = min(training.micro_batch, recipe.batch_size)
    passes_bytes = m.image_bytes * at_once
    total_flop = m.image_flop * recipe.batch_size * recipe.total_steps
    rows = [
        _row("network", f"{recipe.network}, {m.num_parameters / 1e6:,.1f} million parameters"),
        _row("work", f"{m.image_flop / 1e9:,.3g} GFLOP an image, {total_flop:.3g} FLOP in all"),
        _row("memory held", f"{_gb(m.held_bytes)}: weights, averages, gradients, optimizer, …"),
        _row("memory of the passes", f"{_gb(passes_bytes)}: {at_once} images at once"),
        _row("memory a device", f"{_gb(m.held_bytes + passes_bytes)} and some workspace"),
        _row("measured on", _name(training.device)),
        _row(
            "speed",
            f"{_number(m.images_per_s)} images/s in {training.precision}, {m.num_images} at once",
        ),
    ]
    for devices in sorted({1, recipe.num_gpus}):
        step_s = recipe.batch_size / devices / m.images_per_s + m.update_s
        hours = recipe.total_steps * step_s / 3600
        duration = f"{_number(hours / 24)} days" if hours >= 24 else f"{_number(hours)} hours"
        if devices > 1 or hours >= 24:
            duration += f", {_number(hours * devices)} device hours"
        loss = "" if devices == 1 else ", if communication costs nothing"
        these = "device like this" if devices == 1 else "devices like this"
        rows.append(_row(f"duration on {devices} {these}", duration + loss))
    text = resources.files(__package__).joinpath("hardware.toml").read_text(encoding="utf-8")
    theirs = tomllib.loads(text)["a100"]
    hours = total_flop / theirs[training.precision] / 3600
    rows.append(
        _row(
            f"at {theirs['name']} peak",
            f"{_number(hours)} hours; the paper names {theirs['name']}s, but no duration",
        )
    )
    return rows


def measure(training: Training) -> Measured:
    """Try a training out on synthetic images; it has taken two steps then."""
    data = synthetic(8, IMAGE_SIZES[training.recipe.network])

    def gradients(num_images: int) -> None:
        recipe = training.recipe.replace(batch_size=num_images)
        training.gradients(BatchSource(data, recipe, 0).batch(0))

    image_bytes = _saved_bytes(lambda: gradients(2)) - _saved_bytes(lambda: gradients(1))
    with FlopCounterMode(display=False) as counter:
        gradients(1)
    training.update()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _held(training)}
    size, seconds = 1, 0.0
    while seconds < ENOUGH_S:
        gradients(size)  # the libraries choose their ways for this size
        seconds = _seconds(functools.partial(gradients, size), training.device)
        if size >= training.micro_batch:
            break
        size = min(4 * size, training.micro_batch)
    return Measured(
        num_parameters=sum(p.numel() for p in training.online.parameters()),
        held_bytes=sum(storage.nbytes() for storage in held.values()),
        image_bytes=image_bytes,
        image_flop=counter.get_total_flops(),
        images_per_s=size / seconds,
        update_s=_seconds(training.update, training.device),
        num_images=size,
    )


def _saved_bytes(work: Callable[[], None]) -> int:
    """Bytes of everything that `work` keeps for its backward passes."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(kept.values())


def _held(training: Training) -> Iterator[Tensor]:
    """All tensors that a training holds between two steps."""
    modules: list[object] = [training.online, training.target, training.ema, training.teacher]
    modules.append(getattr(training, "distance", None))
    for module in modules:
        if isinstance(module, nn.Module):
            yield from module.state_dict().values()
    for parameter in training.online.parameters():
        if parameter.grad is not None:
            yield parameter.grad
    for state in training.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _row(quantity: str, value: str) -> dict[str, str]:
    return {"quantity": quantity, "value": value}


def _number(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.3g} GB"


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
