"""The folder of a run: states to resume from, and the checkpoint of the averaged weights.

A state holds weights, averages, optimizer, scale of the loss and counters. Random numbers and the
place in the data need no state of their own: seed and step fix them. Files of `torch.save` are
zips whose entries carry checksums (CRC-32). PyTorch ignores them, so a changed bit would pass;
here they are compared first.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from cmrepro.checkpoints.load import CheckpointModel
from cmrepro.distributed import broadcast
from cmrepro.files import atomic_path
from cmrepro.records import CheckpointInfo, Provenance, TrainingRun
from cmrepro.schema import convert, to_builtins
from cmrepro.settings import Recipe
from cmrepro.training.methods import learning_rate_at, two_step_time
from cmrepro.training.step import Training

# Checksums of data and teacher, to which a state belongs: dataset_sha256, teacher_sha256.
Checksums = dict[str, str | None]
OF_RECIPE = (  # fields of `TrainingRun`
    *("method", "scale", "stands_for", "initialisation", "ema_rate", "distance", "batch_size"),
)


def state_files(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def save_state(training: Training, checksums: Checksums, folder: Path, keep: int) -> None:
    """Write folder/state-STEP.pt, then delete all states but the newest `keep`."""
    state = {
        "recipe": to_builtins(training.recipe),
        "seed": training.seed,
        "precision": training.precision,
        "checksums": checksums,
        "step": training.step,
        "duration_s": training.duration_s,
        "online": training.online.state_dict(),
        "target": training.target.state_dict(),
        "ema": training.ema.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
    }
    # Through Python's file: PyTorch's own does not say why it cannot be written.
    with (
        atomic_path(folder / f"state-{training.step:08d}.pt") as temporary,
        open(temporary, "wb") as file,
    ):
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch raises it while it closes a file it cannot write
            raise (error.__context__ or error) from None
    for path in state_files(folder)[keep:]:
        path.unlink()


def load_newest(training: Training, checksums: Checksums, folder: Path) -> bool:
    """Put the newest whole state of a folder into `training`; False if there is no state.

    Raises:
        ValueError: All states are damaged, or the state is of another training.
    """
    path, damaged = None, []
    if training.rank == 0:
        states = state_files(folder)
        path = next((path for path in states if is_whole(path)), None)
        damaged = states[: states.index(path)] if path else states
        if damaged and not path:
            names = ", ".join(map(str, damaged))
            raise ValueError(f"{names}: cut off or damaged; start again in another folder")
    if (path := broadcast(path)) is None:
        return False
    load_state(training, checksums, path)
    for each in damaged:
        each.rename(f"{each}.damaged")
        print(f"{each} is cut off or damaged; resuming from {path}", file=sys.stderr)
    if training.rank == 0:  # files that a killed process did not finish
        for pattern in (".state-*.pt.*", ".*.safetensors.*", ".tmp??????"):
            for each in folder.glob(pattern):
                each.unlink()
    return True


def is_whole(path: Path) -> bool:
    """True if every byte of a state is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # as PyTorch reads zips
        return True
    except Exception:  # the libraries raise errors of many types for a changed byte
        return False


def load_state(training: Training, checksums: Checksums, path: Path) -> None:
    """Put the state of an earlier run of the same recipe, seed and data into `training`.

    The recipe may have more steps than the earlier one where that leaves N(k) as it was.

    Raises:
        ValueError: The state is of another training.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "origin" in state:  # written before states had checksums, scale and stands_for
        origin = state.pop("origin")
        state["checksums"] = {
            "dataset_sha256": origin["data_sha256"],
            "teacher_sha256": origin["teacher_sha256"],
        }
        recipe = training.recipe
        state["recipe"] |= {"scale": recipe.scale, "stands_for": recipe.stands_for}
    step = state["step"]
    found = _course(convert(Recipe, state["recipe"], str(path)), step) | state["checksums"]
    expected = _course(training.recipe, step) | checksums
    for key in ("seed", "precision"):
        found[key], expected[key] = state[key], getattr(training, key)
    for key, value in expected.items():
        if value != found[key]:
            raise ValueError(
                f"{path} is of another training: {key} is {found[key]!r}, not {value!r}; resume "
                "with the same recipe, seed, data and teacher"
            )
    training.online.load_state_dict(state["online"])
    if training.target is not training.online:
        training.target.load_state_dict(state["target"])
    training.ema.load_state_dict(state["ema"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    training.step, training.duration_s = state["step"], state["duration_s"]


def _course(recipe: Recipe, step: int) -> dict[str, Any]:
    """Everything of a recipe that the first `step` steps depend on.

    Its end is no part of it, unless N(k) depends on it or the final decay of the rate has begun.
    """
    schedule_steps = recipe.schedule_steps or recipe.total_steps
    changed = {
        "total_steps": None,
        "schedule_steps": schedule_steps if recipe.s0 else None,
        "learning_rate at that step": learning_rate_at(recipe, step),
    }
    return to_builtins(recipe) | changed


def checkpoint_info(
    training: Training, checksums: Checksums, dataset: str, provenance: Provenance | None
) -> CheckpointInfo:
    """Header of the checkpoint of a run's averaged weights, trained on the named images."""
    recipe, teacher = training.recipe, training.teacher
    run = {
        **{field: getattr(recipe, field) for field in OF_RECIPE},
        **checksums,
        "dataset": dataset,
        "weights": "ema",
        "total_steps": training.step,
        "images_seen": training.step * recipe.batch_size,
        "seed": training.seed,
        "teacher": teacher.path.stem if isinstance(teacher, CheckpointModel) else None,
        "precision": training.precision,
        "num_processes": training.world_size,
        "duration_s": round(training.duration_s, 1),
        "provenance": provenance,
    }
    return CheckpointInfo(
        network=recipe.network,
        parameterization=training.online.parameterization,
        sigma_data=recipe.sigma_data,
        sigma_min=recipe.sigma_min,
        sigma_max=recipe.sigma_max,
        rho=recipe.rho,
        recipe=recipe,
        training=TrainingRun(**run),
        two_step_time=two_step_time(recipe),
    )
