"""What process 0 shows of a run: progress bar, log, TensorBoard; and when it has diverged."""

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cmrepro.data import TrainingImages
from cmrepro.files import atomic_path
from cmrepro.grids import write_grid
from cmrepro.training.schedules import learning_rate_at, scales_and_mu
from cmrepro.training.step import Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from cmrepro.training.samples import QuickScore

# A mean loss so many times the median of the earlier ones is no fluctuation: in healthy runs it
# stays below the median, which is that of the larger losses of the start.
DIVERGED_RATIO = 100.0


class Watch:
    """Bar and log of a run.

    `folder`/log.jsonl gets a line every `log_every` steps: step, images, mean loss since the last
    line, seconds trained, images a second, and N and mu or the scale of the loss where there are
    such. A resumed run goes on in it from its step.

    Args:
        training: The run.
        folder: Of the log, of samples/ with scores.jsonl, and of tensorboard/.
        log_every: Steps between lines.
        tensorboard: Write the same numbers for TensorBoard too.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(
        self, training: Training, folder: Path, log_every: int, tensorboard: bool
    ) -> None:
        self.training, self.folder, self.log_every = training, folder, log_every
        self._board = _summary_writer(folder, training.step) if tensorboard else None
        entries = trimmed_log(folder / "log.jsonl", training.step)
        trimmed_log(folder / "scores.jsonl", training.step)
        self._means = [entry["loss"] for entry in entries]
        self._losses: list[float] = []
        self._score: QuickScore | None = None
        self._last = time.perf_counter(), training.step
        recipe = training.recipe
        self._bar = tqdm(
            total=recipe.total_steps * recipe.batch_size,
            initial=training.step * recipe.batch_size,
            desc=recipe.name,
            unit="images",
            unit_scale=True,
            mininterval=5,
        )

    def close(self) -> None:
        """Finish the bar and TensorBoard's file."""
        self._bar.close()
        if self._board:
            self._board.close()

    def after_step(self, loss: float) -> str | None:
        """Show a step that has been taken.

        Returns:
            That the loss has diverged, where its mean since the last line of the log says so.
        """
        self._losses.append(loss)
        self._bar.update(self.training.recipe.batch_size)
        if self.training.step % self.log_every:
            return None
        entry = self._entry()
        self._losses.clear()
        _append(self.folder / "log.jsonl", entry)
        self._bar.set_postfix(step=entry["step"], loss=f"{entry['loss']:.4g}", refresh=False)
        self._to_board(entry)
        return self._divergence(entry["loss"])

    def look(self, dataset: TrainingImages) -> None:
        """Write a grid of samples of the present step, and their quick score."""
        # Only now: the metrics take seconds to import.
        from cmrepro.training.samples import QuickScore, draw_samples

        self._score = self._score or QuickScore(dataset, self.training.device)
        images = draw_samples(self.training, dataset.image_shape[0])
        write_grid(self.folder / "samples" / f"{self.training.step:08d}.png", images)
        entry = {"step": self.training.step, "quick_fd": round(self._score(images), 2)}
        _append(self.folder / "scores.jsonl", entry)
        self._to_board(entry)

    def _to_board(self, entry: dict[str, Any]) -> None:
        if self._board:
            for key in entry.keys() - {"step"}:
                self._board.add_scalar(key, entry[key], entry["step"])

    def _entry(self) -> dict[str, Any]:
        training, recipe = self.training, self.training.recipe
        now, (then, step) = time.perf_counter(), self._last
        self._last = now, training.step
        entry = {
            "step": training.step,
            "images": training.step * recipe.batch_size,
            "loss": sum(self._losses) / len(self._losses),
            "duration_s": round(training.duration_s, 1),
            "images_per_s": round((training.step - step) * recipe.batch_size / (now - then), 2),
        }
        if recipe.inverse_sqrt_after or recipe.linear_decay_share:
            entry["learning_rate"] = learning_rate_at(recipe, training.step - 1)
        if recipe.method != "edm":
            entry["num_scales"], entry["mu"] = scales_and_mu(recipe, training.step - 1)
        if training.scaler.is_enabled():
            entry["loss_scale"] = training.scaler.get_scale()
        return entry

    def _divergence(self, mean: float) -> str | None:
        usual = statistics.median(self._means) if self._means else mean
        self._means.append(mean)
        if mean <= DIVERGED_RATIO * usual:
            return None
        return (
            f"the loss has diverged at step {self.training.step}: its mean is {mean:g}, the "
            f"median of the earlier ones {usual:g}"
        )


def _append(path: Path, entry: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def trimmed_log(path: Path, step: int) -> list[dict[str, Any]]:
    """The entries of a log up to a step; those beyond it, as a killed run leaves them, go.

    Args:
        path: Of the log, one JSON object a line; may be missing.
        step: The last that counts.
    """
    kept, entries = [], []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n") or (entry := json.loads(line))["step"] > step:
            break
        kept.append(line)
        entries.append(entry)
    if path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept))
    return entries


def _summary_writer(folder: Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install 'cmrepro[tensorboard]'"
        ) from error
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)
