"""What a training needs to go on: weights, averages, optimizer, scale of the loss, counters.

Random numbers and the place in the data need no state of their own: seed and step fix them. The
files are those of `torch.save`, zips whose entries carry checksums (CRC-32). PyTorch does not
look at these when it loads, so a changed bit would pass; here they are compared first.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmrepro.files import atomic_path
from cmrepro.schema import convert, to_builtins
from cmrepro.settings import Recipe
from cmrepro.training.schedules import learning_rate_at

if TYPE_CHECKING:
    from cmrepro.training.step import Training


def state_files(folder: Path) -> list[Path]:
    """The states in a folder, newest first; state.pt, the name of earlier versions, is last."""
    return [*sorted(folder.glob("state-*.pt"), reverse=True), *folder.glob("state.pt")]


def save_state(training: Training, origin: dict[str, Any], folder: Path, keep: int) -> None:
    """Write the state of a run, then delete all but the newest `keep`.

    Args:
        training: Between two steps.
        origin: Checksums of data and teacher.
        folder: Gets state-STEP.pt.
        keep: At least 1.

    Raises:
        ValueError: The file cannot be written.
    """
    state = {
        "recipe": to_builtins(training.recipe),
        "seed": training.seed,
        "precision": training.precision,
        "origin": origin,
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
        except RuntimeError as error:  # raised on the way out, where a write has failed
            raise (error.__context__ or error) from None
    for path in state_files(folder)[keep:]:
        path.unlink()


def newest_state(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole state in a folder, and the damaged ones that are newer.

    Raises:
        ValueError: There are states, but no whole one.
    """
    damaged: list[Path] = []
    for path in state_files(folder):
        if _is_whole(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise ValueError(
            f"{', '.join(map(str, damaged))}: cut off, damaged or no training state; start again "
            "in another folder"
        )
    return None, []


def _is_whole(path: Path) -> bool:
    """Whether every byte of a state is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # as PyTorch reads zips
        return True
    except Exception:  # each library stumbles in its own ways over a changed byte
        return False


def load_state(training: Training, origin: dict[str, Any], path: Path) -> None:
    """Put the state of an earlier run of the same recipe, seed and data into `training`.

    The recipe may go on longer than the earlier one where that leaves N(k) as it was.

    Raises:
        ValueError: A broken state, or that of another training.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        step = state["step"]
        # Earlier versions stored neither of the first two.
        named = {"scale": training.recipe.scale, "stands_for": training.recipe.stands_for}
        recipe = convert(Recipe, named | state["recipe"], str(path))
        theirs = _course(recipe, step) | {"seed": state["seed"]}
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, pickle.PickleError) as error:
        raise ValueError(
            f"{path} is cut off or no training state ({type(error).__name__}); start again in "
            "another folder"
        ) from error
    # States of earlier versions know neither, and were of float32 throughout.
    theirs |= {"precision": state.get("precision", "fp32")} | state.get("origin", origin)
    mine = _course(training.recipe, step) | {"seed": training.seed}
    mine |= {"precision": training.precision} | origin
    for key in mine:
        if mine[key] != theirs.get(key):
            raise ValueError(
                f"{path} is of another training: {key} is {theirs.get(key)!r}, not {mine[key]!r}; "
                "resume with the same recipe, seed, data and teacher"
            )
    training.online.load_state_dict(state["online"])
    if training.target is not training.online:
        training.target.load_state_dict(state["target"])
    training.ema.load_state_dict(state["ema"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state.get("scaler", {}))
    training.step, training.duration_s = state["step"], state["duration_s"]


def _course(recipe: Recipe, step: int) -> dict[str, Any]:
    """What fixes the first `step` steps of a recipe.

    Where it ends does not, unless N(k) depends on it or the final decay of the rate has begun.
    """
    schedule_steps = recipe.schedule_steps or recipe.total_steps
    changed = {
        "total_steps": None,
        "schedule_steps": schedule_steps if recipe.s0 else None,
        "learning_rate at that step": learning_rate_at(recipe, step),
    }
    return to_builtins(recipe) | changed
