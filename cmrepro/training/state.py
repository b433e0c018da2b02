"""States to resume from, and the header of a checkpoint.

Random numbers and the place in the data are no part of a state: seed and step fix them.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import asdict

from cmrepro.checkpoints.load import CheckpointModel
from cmrepro.data import ImageSource
from cmrepro.data.sources import ImageFiles
from cmrepro.distributed import broadcast
from cmrepro.files import atomic_path
from cmrepro.records import CheckpointInfo, Provenance, TrainingRun
from cmrepro.schema import convert, to_builtins
from cmrepro.settings import Recipe
from cmrepro.training.methods import two_step_time
from cmrepro.training.step import Training

Checksums = dict[str, str | None]  # dataset_sha256, teacher_sha256
PARTS = ("online", "target", "ema", "optimizer", "scaler")  # objects with a state of their own
FIXES = {
    "schedule_steps": "N(k) and mu(k) follow it; leave it out to keep that of the run",
    "total_steps": "linear_decay_share fixes the decay before the end; keep that of the run",
}


def state_files(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def save_state(training: Training, checksums: Checksums, folder: Path) -> None:
    """Write folder/state-STEP.pt, then delete all states but this one and the one before."""
    state = {"recipe": to_builtins(training.recipe), "checksums": checksums}
    state |= {
        name: getattr(training, name) for name in ("seed", "precision", "step", "duration_s")
    }
    state |= {name: getattr(training, name).state_dict() for name in PARTS}
    path = folder / f"state-{training.step:08d}.pt"
    # Through Python's file: PyTorch's own does not say why it cannot be written.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch raises it while it closes a file it cannot write
            raise (error.__context__ or error) from None
    for path in state_files(folder)[2:]:
        path.unlink()


def load_newest(training: Training, checksums: Checksums, folder: Path) -> bool:
    """Put a folder's newest state into `training`; False if it has no state."""
    newest = next(iter(state_files(folder)), None) if training.rank == 0 else None
    if newest and not is_whole(newest):
        raise ValueError(f"{newest} is damaged; delete it to resume from the one before")
    if (path := broadcast(newest)) is None:
        if training.rank == 0:
            print(f"no state in {folder}; starting with the first step", file=sys.stderr)
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    recipe, step = training.recipe, state["step"]
    stored = convert(Recipe, state["recipe"], str(path))
    kept = stored.schedule_steps or stored.total_steps
    if recipe.s0 and not recipe.schedule_steps and kept != recipe.total_steps:
        recipe = training.recipe = recipe.replace(schedule_steps=kept)
        if training.rank == 0:
            print(f"N(k) and mu(k) continue with schedule_steps = {kept}", file=sys.stderr)
    found = _course(stored) | state["checksums"]
    expected = _course(recipe) | checksums
    for key in ("seed", "precision"):
        found[key], expected[key] = state[key], getattr(training, key)
    for key, value in expected.items():
        if value != found[key]:
            differs = f"{key} is {found[key]!r}, not {value!r}"
            fix = FIXES.get(key, "use another --out")
            raise ValueError(f"{path} is of another training: {differs}; {fix}")
    for name in PARTS:
        getattr(training, name).load_state_dict(state[name])
    training.step, training.duration_s = step, state["duration_s"]
    if training.rank == 0:
        for pattern in (".state-*.pt.*", ".*.safetensors.*", ".tmp??????"):
            for unfinished in folder.glob(pattern):  # by a killed process
                unfinished.unlink()
    return True


def is_whole(path: Path) -> bool:
    """True if every entry of a state, a zip, has its checksum, which PyTorch does not compare."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of many types, for a changed byte between the entries
        return False


def _course(recipe: Recipe) -> dict[str, Any]:
    """Everything of a recipe but its end, unless steps before the end depend on that."""
    return to_builtins(recipe) | {
        "total_steps": recipe.linear_decay_share and recipe.total_steps,
        "schedule_steps": recipe.s0 and (recipe.schedule_steps or recipe.total_steps),
    }


def checkpoint_info(
    training: Training, checksums: Checksums, dataset: ImageSource, provenance: Provenance | None
) -> CheckpointInfo:
    """Header of the checkpoint of a run's averaged weights, trained on a data set."""
    recipe, teacher = training.recipe, training.teacher
    fields = asdict(recipe)
    run = {name: fields[name] for name in TrainingRun.__struct_fields__ if name in fields} | {
        **checksums,
        "dataset": dataset.name,
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
    if isinstance(dataset, ImageFiles):  # not in memory, so never decoded as a whole
        run["dataset_files_sha256"] = run.pop("dataset_sha256", None)
    header = {name: fields[name] for name in CheckpointInfo.__struct_fields__ if name in fields}
    return CheckpointInfo(
        **header,
        parameterization=training.online.parameterization,
        recipe=recipe,
        training=TrainingRun(**run),
        two_step_time=two_step_time(recipe),
    )
