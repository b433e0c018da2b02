"""What a training needs to go on: weights, averages, optimizer, counters."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmrepro.files import atomic_path

if TYPE_CHECKING:
    from cmrepro.training.loop import Training


def save_state(training: Training, path: Path) -> None:
    """Write the state of a run to `path`."""
    state = {
        "recipe": dataclasses.asdict(training.recipe),
        "seed": training.seed,
        "step": training.step,
        "duration_s": training.duration_s,
        "online": training.online.state_dict(),
        "target": training.target.state_dict(),
        "ema": training.ema.state_dict(),
        "optimizer": training.optimizer.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(training: Training, path: Path) -> None:
    """Put the state of an earlier run of the same recipe and seed into `training`.

    The recipe may go on longer than the earlier one where that leaves N(k) as it was.

    Raises:
        ValueError: No state there, a broken one, or that of another recipe or seed.
    """
    if not path.is_file():
        raise ValueError(f"nothing to resume at {path}; start without --resume")
    try:
        state = torch.load(path, map_location=training.device, weights_only=True)
        theirs = _course(state["recipe"]) | {"seed": state["seed"]}
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, pickle.PickleError) as error:
        raise ValueError(
            f"{path} is cut off or no training state ({type(error).__name__}); start again in "
            "another folder"
        ) from error
    mine = _course(dataclasses.asdict(training.recipe)) | {"seed": training.seed}
    for key in mine:
        if mine[key] != theirs.get(key):
            raise ValueError(
                f"{path} is of another training: {key} is {theirs.get(key)!r}, not {mine[key]!r}; "
                "resume with the same recipe and seed"
            )
    training.online.load_state_dict(state["online"])
    if training.target is not training.online:
        training.target.load_state_dict(state["target"])
    training.ema.load_state_dict(state["ema"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.step, training.duration_s = state["step"], state["duration_s"]


def _course(recipe: dict[str, Any]) -> dict[str, Any]:
    """What fixes each step of a recipe: all but where it ends, which only N(k) may depend on."""
    schedule_steps = recipe["schedule_steps"] or recipe["total_steps"]
    changed = {"total_steps": None, "schedule_steps": schedule_steps if recipe["s0"] else None}
    return recipe | changed
