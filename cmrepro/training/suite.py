"""Trainings of a suite, one after another; started again, they continue where they stopped."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import load_model
from cmrepro.data import training_images
from cmrepro.distributed import rank_and_world_size
from cmrepro.experiments.reproduce import Suite
from cmrepro.files import make_folder
from cmrepro.networks.presets import IMAGE_SIZES
from cmrepro.provenance import provenance
from cmrepro.settings import Recipe
from cmrepro.training.loop import train
from cmrepro.training.recipes import load_recipe
from cmrepro.training.step import Training, needs_teacher

TRAININGS = Path("training")  # below --out


def train_suite(
    suite: Suite,
    out: Path,
    data: str | None = None,
    changes: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> dict[str, int]:
    """Train into out/training/NAME what is not there; steps of sampling by checkpoint.

    Seeds after a plan's first go to NAME-seedN. `data` are the training images, by default those
    of each recipe. `changes` are fields of all recipes, for trials in another size.
    """
    checkpoints: dict[str, int] = {}
    for name, plan, seed in [(n, p, seed) for n, p in suite.trainings.items() for seed in p.seeds]:
        run, teacher = name if seed == plan.seeds[0] else f"{name}-seed{seed}", plan.teacher
        folder = out / TRAININGS / run
        path = folder / f"{name}.safetensors"
        values = suite.changes | plan.changes | {**(changes or {})}
        recipe = load_recipe(plan.recipe).replace(
            **{k: None if v == "none" else v for k, v in values.items()}
        )
        if not is_trained(path, recipe):
            if teacher and teacher in suite.trainings:
                teacher = str(out / TRAININGS / teacher / f"{teacher}.safetensors")
            model = load_model(teacher, device) if teacher and needs_teacher(recipe) else None
            images = training_images(data or recipe.dataset, IMAGE_SIZES[recipe.network])
            training = Training(recipe, seed, model, device)
            train(training, images, folder, name=name, resume=True, provenance=provenance())
        if rank_and_world_size()[0] == 0:
            logs = out / "results/training"
            make_folder(logs)
            shutil.copyfile(folder / "log.jsonl", logs / f"{run}.jsonl")
        if plan.steps:
            checkpoints[str(path)] = plan.steps
    return checkpoints


def is_trained(path: Path, recipe: Recipe) -> bool:
    """True if a checkpoint is that of a recipe's last step."""
    if not path.is_file():
        return False
    info = read_info(path)
    steps = info.training.total_steps if info.training else None
    return info.recipe == recipe and steps == recipe.total_steps
