"""A whole training: checks, steps, log, previews, saves, and how it stops."""

import contextlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torch import distributed

from cmrepro.checkpoints.io import save_checkpoint
from cmrepro.checkpoints.load import CheckpointModel
from cmrepro.data import ImageSource
from cmrepro.data.grids import GRID_COLUMNS, GRID_ROWS, write_grid
from cmrepro.distributed import all_reduce_max
from cmrepro.files import atomic_path, make_folder, sha256
from cmrepro.networks.presets import IMAGE_SIZES
from cmrepro.progress import progress_bar
from cmrepro.records import Provenance
from cmrepro.sampling import sample, sampler_settings
from cmrepro.training.data import BatchSource, prefetched
from cmrepro.training.methods import learning_rate_at, scales_and_mu
from cmrepro.training.state import checkpoint_info, load_newest, save_state, state_files
from cmrepro.training.step import Training
from cmrepro.training.trajectory import Trajectories, distances_by_time, teacher_trajectories

PREVIEW_HEUN_POINTS = 10  # half of EDM's 18: for a preview, not for a result


def train(
    training: Training,
    dataset: ImageSource,
    out: Path,
    *,
    name: str | None = None,  # name of the checkpoint; the recipe's by default
    resume: bool = False,  # continue from the newest state in `out`, if there is one
    save_every: int = 500,  # steps between states
    log_every: int = 50,  # steps between lines of the log; the first and the last have one too
    sample_every: int = 2000,  # steps between grids of samples; 0 for none
    provenance: Provenance | None = None,  # code and machine, for the checkpoint
) -> Path:
    """Train to the recipe's last step and write the checkpoint of the averaged weights.

    `out` then holds NAME.safetensors, the newest states (state-STEP.pt), log.jsonl and samples/.
    Ctrl-C and SIGTERM save the first two and end the run after its step. Every process of
    `torchrun` calls this with the same arguments and folder; rank 0 writes.
    """
    recipe, teacher, rank = training.recipe, training.teacher, training.rank
    size = IMAGE_SIZES[recipe.network]
    if dataset.image_shape[:2] != (size, size):
        got = f"'{dataset.name}' has images of {dataset.image_shape[:2]} px"
        raise ValueError(f"{got}, network '{recipe.network}' takes {size} x {size}; resize them")
    checksums: dict[str, str | None] = {"dataset_sha256": dataset.sha256(), "teacher_sha256": None}
    if isinstance(teacher, CheckpointModel):
        checksums["teacher_sha256"] = sha256(teacher.path)
        if (taught := teacher.info.recipe) and taught.dataset != recipe.dataset:
            text = f"the teacher was trained on {taught.dataset}"
            raise ValueError(f"{text}, the recipe is for {recipe.dataset}")
    name = name or recipe.name
    checkpoint = out / f"{name}.safetensors"
    resumed = resume and load_newest(training, checksums, out)
    recipe = training.recipe  # with the schedule of the run that continues
    # --resume may replace the log of its own run, but no checkpoint of an unknown one.
    guarded = [checkpoint] if resume else [checkpoint, out / "log.jsonl", *state_files(out)]
    if not resumed and (present := [path for path in guarded if path.exists()]):
        fix = "continue its training with --resume, or choose another --out or --name"
        raise ValueError(f"{present[0]} is there already; {fix}")
    make_folder(out)
    log = Log(training, dataset, out, name)

    def save() -> None:
        if rank == 0:
            save_state(training, checksums, out)
            info = checkpoint_info(training, checksums, dataset, provenance)
            save_checkpoint(checkpoint, training.ema.network, info)

    source = BatchSource(dataset, recipe, training.seed, rank, training.world_size)
    batches = prefetched(source, range(training.step, recipe.total_steps), training.device)
    try:
        with stop_signals() as received, contextlib.closing(batches), log.bar:
            while training.step < recipe.total_steps:
                start = time.perf_counter()
                loss = training.train_step(next(batches))
                training.duration_s += time.perf_counter() - start
                log.after_step(loss, log_every, save_every)
                if stop := all_reduce_max(max(received, default=0)):
                    save()
                    if rank == 0:
                        text = f"saved at step {training.step}; continue with --resume"
                        log.bar.write(text, file=sys.stderr)
                    raise KeyboardInterrupt if stop == signal.SIGINT else SystemExit(128 + stop)
                if sample_every and training.step % sample_every == 0:
                    log.preview()
                if training.step % save_every == 0 and training.step < recipe.total_steps:
                    save()
    except FloatingPointError as error:
        good = next(iter(state_files(out)), "none before the first save")
        fix = "try a lower learning_rate (from fp16, also another --precision) in a new folder"
        raise FloatingPointError(f"{error}; last good state: {good}; {fix}") from error
    save()
    return checkpoint


@contextlib.contextmanager
def stop_signals() -> Iterator[set[int]]:
    """The signals to stop that were received; without `torchrun`, a second one stops at once."""
    received: set[int] = set()

    def note(number: int, frame: object) -> None:
        # `torchrun` passes on to its processes what they have received already.
        if received and not distributed.is_initialized():
            raise KeyboardInterrupt
        received.add(number)

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, note))
        yield received


class Log:
    """Progress bar, log (losses are means since the line before) and previews, at rank 0."""

    def __init__(self, training: Training, dataset: ImageSource, out: Path, model: str) -> None:
        self.training, self.dataset, self.out, self.model = training, dataset, out, model
        self._losses: list[float] = []
        self.trajectories: Trajectories | None = None
        if training.rank == 0:
            trim_log(out / "log.jsonl", training.step)
            if training.teacher and training.method.parameterization == "boundary":
                size, seed = dataset.image_shape[0], training.seed
                self.trajectories = teacher_trajectories(
                    training.teacher, training.recipe, size, seed
                )
        ends = {"initial": training.step, "total": training.recipe.total_steps}
        self.bar = progress_bar(None, training.rank > 0, desc=model, unit="step", **ends)

    def after_step(self, loss: float, log_every: int, save_every: int) -> None:
        """Count a step, and log the first, the last and every `log_every` and `save_every`."""
        training, recipe, step = self.training, self.training.recipe, self.training.step
        self._losses.append(loss)
        self.bar.update()
        saves = step in (1, recipe.total_steps) or not step % save_every
        if training.rank > 0 or (step % log_every and not saves):
            return
        mean = statistics.fmean(self._losses)
        entry = {
            "model": self.model,
            "step": step,
            "images": step * recipe.batch_size,
            "loss": mean,
            "duration_s": round(training.duration_s, 1),
            "learning_rate": learning_rate_at(recipe, step - 1),
            "loss_scale": training.scaler.get_scale(),
        }
        if training.method.parameterization == "boundary":
            entry["num_scales"], entry["mu"] = scales_and_mu(recipe, step - 1)
        if saves and self.trajectories:
            for weights in ("online", "ema"):
                model = getattr(training, weights)
                entry[f"{weights}_distances"] = distances_by_time(model, self.trajectories)
        self._losses = []
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
        self.bar.set_postfix(loss=f"{mean:.4g}", refresh=False)

    def preview(self) -> None:
        """Write samples/STEP.png; the processes sample together."""
        training, step, size = self.training, self.training.step, self.dataset.image_shape[0]
        info = checkpoint_info(training, {}, self.dataset, None)
        steps = {"edm": PREVIEW_HEUN_POINTS, "pd": training.recipe.num_scales or 1}.get(
            training.recipe.method, 1
        )
        settings = sampler_settings(info, steps)
        stages = sample(training.ema, settings, GRID_ROWS * GRID_COLUMNS, 0, size).stages
        if training.rank == 0:
            write_grid(self.out / "samples" / f"{step:08d}.png", stages[-1])


def trim_log(path: Path, step: int) -> None:
    """Remove the lines beyond a step, as a killed run leaves them."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    count = sum(entry["step"] <= step for entry in entries)
    if count < len(lines):
        with atomic_path(path) as temporary:
            temporary.write_text("".join(lines[:count]))
