"""Size and duration of a training, before it starts: 20 timed steps and a multiplication."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from cmrepro.consistency.distances import LPIPS
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.data import synthetic
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.progress import progress_bar
from cmrepro.settings import Recipe
from cmrepro.training.data import BatchSource
from cmrepro.training.step import Training, needs_teacher

NUM_STEPS, ENOUGH_S = 20, 60.0  # no further step after either


def plan(recipe: Recipe, device: str = "cpu", **settings: Any) -> Iterator[list[dict[str, str]]]:
    """Rows of quantity and value: parameters, memory, steps, images; then speed and duration.

    The first rows need no computation, the others are measured on this device with random weights
    and synthetic images. `settings` are those of `Training`.
    """
    with torch.device("meta"):  # parameters without values, which take no time
        num_parameters = sum(p.numel() for p in build_network(recipe.network).parameters())
    has_target = recipe.method != "edm" and recipe.target_ema != 0
    copies = 5 + has_target + needs_teacher(recipe)  # weights, average, gradients, two moments
    yield _rows(
        network=f"{recipe.network}, {num_parameters / 1e6:,.1f} million parameters",
        memory=f"{4e-9 * copies * num_parameters:.3g} GB of networks, gradients and optimizer",
        steps=f"{recipe.total_steps:,}",
        images=f"{recipe.total_steps * recipe.batch_size:,} in batches of {recipe.batch_size:,}",
    )
    teacher = distance = None
    if needs_teacher(recipe):
        teacher = PreconditionedModel(build_network(recipe.network), "edm", recipe.sigma_data)
        teacher = teacher.to(device).eval()
    if recipe.distance in ("lpips", "lpips-average"):
        distance = LPIPS(pretrained=False)
    training = Training(recipe, 0, teacher, device, distance=distance, **settings)
    micro_batch = min(training.micro_batch, recipe.batch_size)
    training.recipe = recipe.replace(batch_size=micro_batch)
    batch = BatchSource(synthetic(16, IMAGE_SIZES[recipe.network]), training.recipe, 0).batch(0)
    durations: list[float] = []
    for _ in progress_bar(range(NUM_STEPS + 1), desc="timing", unit="step", leave=False):
        start = time.perf_counter()
        training.train_step(batch)  # waits for the device, since it returns the loss as a number
        durations.append(time.perf_counter() - start)
        if sum(durations) > ENOUGH_S:
            break
    timed = durations[1:] or durations  # the first step allocates and chooses algorithms
    images_per_s = micro_batch * len(timed) / sum(timed)
    hours = recipe.total_steps * recipe.batch_size / images_per_s / 3600
    rows = {
        "speed": f"{images_per_s:,.3g} images/s in {training.precision}, {micro_batch} at once",
        "duration on 1 device": f"{hours:,.3g} hours, from {len(timed)} steps",
    }
    if (n := recipe.num_gpus) > 1:
        rows[f"duration on {n} devices"] = f"{hours / n:,.3g} hours and communication"
    if training.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        rows["memory with the passes"] = f"{peak:.3g} GB"
    yield _rows(**rows)


def _rows(**values: str) -> list[dict[str, str]]:
    return [{"quantity": quantity, "value": value} for quantity, value in values.items()]
