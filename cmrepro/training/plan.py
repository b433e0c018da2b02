"""Memory and duration of a training, before it starts: 20 timed steps and a multiplication."""

import time
from typing import Any

import torch
from torch import nn
from tqdm import trange

from cmrepro.consistency.distances import LPIPS
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.data import synthetic
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.settings import Recipe
from cmrepro.training.data import BatchSource
from cmrepro.training.step import Training, needs_teacher

NUM_STEPS, ENOUGH_S = 20, 60.0  # no further step after either


def plan(recipe: Recipe, device: str = "cpu", **settings: Any) -> list[dict[str, str]]:
    """Parameters, memory and duration of a recipe on this device, as rows of quantity and value.

    Weights are random, images synthetic; `settings` are those of `Training`.
    """
    teacher = None
    if needs_teacher(recipe):
        teacher = PreconditionedModel(build_network(recipe.network), "edm", recipe.sigma_data)
        teacher = teacher.to(device).eval()
    distance = LPIPS(pretrained=False) if recipe.distance in ("lpips", "lpips-average") else None
    training = Training(recipe, 0, teacher, device, distance=distance, **settings)
    micro_batch = min(training.micro_batch, recipe.batch_size)
    millions = sum(p.numel() for p in training.online.parameters()) / 1e6
    held = held_bytes(training, teacher, distance) / 1e9
    training.recipe = recipe.replace(batch_size=micro_batch)
    batch = BatchSource(synthetic(16, IMAGE_SIZES[recipe.network]), training.recipe, 0).batch(0)
    durations: list[float] = []
    for _ in trange(NUM_STEPS + 1, desc=f"{millions:.1f} M parameters, {held:.3g} GB"):
        start = time.perf_counter()
        training.train_step(batch)  # waits for the device, since it returns the loss as a number
        durations.append(time.perf_counter() - start)
        if sum(durations) > ENOUGH_S:
            break
    timed = durations[1:] or durations  # the first step allocates and chooses algorithms
    images_per_s = micro_batch * len(timed) / sum(timed)
    hours = recipe.total_steps * recipe.batch_size / images_per_s / 3600
    rows = {
        "network": f"{recipe.network}, {millions:,.1f} million parameters",
        "memory": f"{held:.3g} GB of weights, averages, gradients and optimizer",
        "speed": f"{images_per_s:,.3g} images/s in {training.precision}, {micro_batch} at once",
        "duration on 1 device": f"{hours:,.3g} hours, from {len(timed)} steps",
    }
    if training.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        rows["memory"] += f", {peak:.3g} GB with the passes"
    if (n := recipe.num_gpus) > 1:
        rows[f"duration on {n} devices"] = f"{hours / n:,.3g} hours and communication"
    return [{"quantity": quantity, "value": value} for quantity, value in rows.items()]


def held_bytes(training: Training, *others: nn.Module | None) -> int:
    """Bytes of weights, averages, gradients, RAdam's moments and other models."""
    models = {training.online, training.target, training.ema, *filter(None, others)}
    held = [tensor for model in models for tensor in model.state_dict().values()]
    return sum(t.nbytes for t in held) + 3 * sum(p.nbytes for p in training.online.parameters())
