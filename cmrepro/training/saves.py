"""The folder of a run: its checkpoint and states, written by process 0."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import distributed

from cmrepro.checkpoints.io import save_checkpoint
from cmrepro.distributed import broadcast
from cmrepro.records import CheckpointInfo, Provenance, TrainingRun
from cmrepro.training.schedules import two_step_time
from cmrepro.training.state import load_state, newest_state, save_state, state_files
from cmrepro.training.step import Training


class Saves:
    """Writes a run into its folder, and finds there what it can go on from.

    Args:
        training: The run.
        folder: Gets NAME.safetensors and state-STEP.pt.
        sources: Checksums of what a state belongs to: data and teacher.
        dataset: Name of the images.
        teacher: Name or path of the teacher.
        provenance: Code and machine.
        keep: Number of states to keep, at least 1.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        sources: dict[str, Any],
        dataset: str,
        teacher: str | None,
        provenance: Provenance | None,
        keep: int,
    ) -> None:
        self.training, self.folder, self.keep = training, folder, keep
        self.sources, self.dataset, self.teacher = sources, dataset, teacher
        self.provenance = provenance
        self.checkpoint = folder / f"{training.recipe.name}.safetensors"
        self._saved_step: int | None = None

    def begin(self, resume: bool) -> None:
        """Put the newest whole state into the run; or make sure that there is none.

        Raises:
            ValueError: The folder holds a training and `resume` is not wanted, or nothing to
                resume, or the state of another training.
        """
        occupied = bool(state_files(self.folder)) or self.checkpoint.exists()
        if not resume and occupied:
            raise ValueError(
                f"{self.folder} already holds a training; go on with --resume or choose another"
            )
        if not resume or (not occupied and distributed.is_initialized()):
            return
        first = self.training.rank == 0
        newest, damaged = newest_state(self.folder) if first else (None, [])
        name = broadcast(str(newest) if newest else None)
        if name is None:
            raise ValueError(f"no state to resume in {self.folder}; start without --resume")
        load_state(self.training, self.sources, Path(name))
        self._saved_step = self.training.step
        if first:
            self._tidy(damaged, name)

    def _tidy(self, damaged: list[Path], used: str) -> None:
        """Put damaged states aside, and remove what a killed process was writing."""
        for path in damaged:
            path.rename(f"{path}.damaged")
            print(f"{path} is cut off or damaged; going on from {used}", file=sys.stderr)
        # The last is how safetensors names what it writes.
        for pattern in (".state-*.pt.*", f".{self.checkpoint.name}.*", ".tmp??????"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def save(self) -> None:
        """Write the state, if it is not there yet, and the checkpoint.

        Raises:
            ValueError: A file cannot be written; the earlier ones are as they were.
        """
        training, recipe = self.training, self.training.recipe
        if training.rank:
            return
        if training.step != self._saved_step:
            save_state(training, self.sources, self.folder, self.keep)
            self._saved_step = training.step
        run = TrainingRun(
            method=recipe.method,
            scale=recipe.scale,
            stands_for=recipe.stands_for,
            dataset=self.dataset,
            initialisation=recipe.initialisation,
            weights="ema",
            ema_rate=recipe.ema_rate,
            distance=recipe.distance,
            batch_size=recipe.batch_size,
            total_steps=training.step,
            images_seen=training.step * recipe.batch_size,
            seed=training.seed,
            dataset_sha256=self.sources["data_sha256"],
            teacher=self.teacher,
            teacher_sha256=self.sources["teacher_sha256"],
            precision=training.precision,
            num_processes=training.num_processes,
            duration_s=round(training.duration_s, 1),
            provenance=self.provenance,
        )
        info = CheckpointInfo(
            network=recipe.network,
            parameterization=training.online.parameterization,
            sigma_data=recipe.sigma_data,
            sigma_min=recipe.sigma_min,
            sigma_max=recipe.sigma_max,
            rho=recipe.rho,
            recipe=recipe,
            training=run,
            two_step_time=two_step_time(recipe),
        )
        save_checkpoint(self.checkpoint, training.ema.network, info)

    @contextlib.contextmanager
    def after_failure(self) -> Iterator[None]:
        """Save when a step fails before it has changed anything; say what to try about numbers."""
        try:
            yield
        except BaseException as error:
            if self.training.between_steps and self.training.step:
                self.save()
            if isinstance(error, FloatingPointError):
                raise FloatingPointError(self.advice(str(error))) from error
            raise

    def advice(self, problem: str) -> str:
        """A numerical problem with the last good state and what to try."""
        good = next(iter(state_files(self.folder)), "none, it is younger than the first save")
        half = "--precision fp32 or bf16, or " if self.training.precision == "fp16" else ""
        return (
            f"{problem}; last good state: {good}; try {half}a lower learning_rate in a new folder"
        )
