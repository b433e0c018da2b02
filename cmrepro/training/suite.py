"""Trainings of a suite, one after another; started again, they continue where they stopped."""

import functools
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

    Training seeds other than 0 go to NAME-seedN. `data` are the training images, by default those
    of each recipe. `changes` are fields of all recipes, for trials in another size.
    """
    checkpoints: dict[str, int] = {}
    images_of = functools.cache(training_images)  # read once for all trainings
    for name, plan in suite.trainings.items():
        values = suite.changes | plan.changes | dict(changes or {})
        recipe = load_recipe(plan.recipe).replace(
            **{k: None if v == "none" else v for k, v in values.items()}
        )
        teacher = plan.teacher
        if teacher in suite.trainings:
            first = suite.trainings[teacher].training_seeds[0]
            teacher = str(out / TRAININGS / run_name(teacher, first) / f"{teacher}.safetensors")
        for seed in plan.training_seeds:
            run = run_name(name, seed)
            folder = out / TRAININGS / run
            path = folder / f"{name}.safetensors"
            if not is_trained(path, recipe, seed):
                model = load_model(teacher, device) if teacher and needs_teacher(recipe) else None
                images = images_of(data or recipe.dataset, IMAGE_SIZES[recipe.network])
                training = Training(recipe, seed, model, device)
                train(training, images, folder, name=name, resume=True, provenance=provenance())
            if rank_and_world_size()[0] == 0:
                logs = out / "results/training"
                make_folder(logs)
                shutil.copyfile(folder / "log.jsonl", logs / f"{run}.jsonl")
            if plan.steps:
                checkpoints[str(path)] = plan.steps
    return checkpoints


def run_name(name: str, seed: int) -> str:
    """Name of the folder and the log of a training."""
    return f"{name}-seed{seed}" if seed else name


def is_trained(path: Path, recipe: Recipe, seed: int) -> bool:
    """True if a checkpoint is that of a recipe's last step with a training seed."""
    if not path.is_file():
        return False
    info = read_info(path)
    run = info.training and (info.recipe, info.training.total_steps, info.training.seed)
    return run == (recipe, recipe.total_steps, seed)
