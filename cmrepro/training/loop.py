"""A whole training: its checks, its steps, how it is stopped, saved and gone on with."""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Never

from torch import distributed
from tqdm import tqdm

from cmrepro.checkpoints.load import CheckpointModel, find_checkpoint, load_model
from cmrepro.data import TrainingImages, training_images
from cmrepro.distributed import all_reduce_max, shard
from cmrepro.files import DownloadError, make_folder, sha256
from cmrepro.networks.presets import IMAGE_SIZES
from cmrepro.records import Provenance
from cmrepro.schema import unknown
from cmrepro.settings import Recipe
from cmrepro.training.batches import BatchSource, prefetched
from cmrepro.training.saves import Saves
from cmrepro.training.step import Training
from cmrepro.training.watch import Watch

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DIVERGED = max(signal.valid_signals()) + 1  # what the processes agree on is a signal, or this


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """How often a run does what is not training, in steps.

    Attributes:
        save_every: Between checkpoints.
        log_every: Between lines of the log.
        sample_every: Between grids of samples with a quick score; 0 for none.
    """

    save_every: int = 500
    log_every: int = 50
    sample_every: int = 2000


def train(
    recipe: Recipe,
    dataset: TrainingImages,
    out: Path,
    *,
    seed: int = 0,
    teacher: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    precision: str | None = None,
    micro_batch: int | None = None,
    compiled: bool = False,
    rhythm: Rhythm = Rhythm(),
    keep: int = 2,
    tensorboard: bool = False,
    provenance: Provenance | None = None,
) -> Path:
    """Train a recipe to its last step and write the checkpoint of its EMA weights.

    `out` then holds NAME.safetensors, the newest states (state-STEP.pt, to go on), log.jsonl,
    samples/ and scores.jsonl. The first two are also written when the run is interrupted: Ctrl-C
    and SIGTERM end it after the step in progress.

    Every process of `torchrun` calls this with the same arguments, and the first one writes.
    `out` is the same folder for all: over several nodes, one on a shared file system.

    Args:
        recipe: What to train.
        dataset: Training images.
        out: Folder.
        seed: Of everything random.
        teacher: Name or path of the EDM checkpoint, for recipes that need one.
        resume: Go on from the newest whole state in `out`. Under `torchrun`, which starts all
            processes again with the same command when one has died, an empty folder is one in
            which the run has not got as far as its first save.
        device: "cpu", "cuda", …
        precision: As for `Training`, like the next two.
        micro_batch: Images that go through the network at once.
        compiled: Compile the networks.
        rhythm: How often to save, log and sample.
        keep: Number of states to keep.
        tensorboard: Write the log for TensorBoard too.
        provenance: Code and machine, for the checkpoint.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: The folder holds another run, or none to resume; the images are not of the
            network's size; the teacher is no EDM denoiser or of other data; `out` cannot be
            written; see `Training` too.
        FloatingPointError: The gradient is not finite, or the loss has diverged.
        KeyboardInterrupt: Ctrl-C. The state is saved.
        SystemExit: SIGTERM, with exit code 143. The state is saved.
    """
    teacher_model = None if teacher is None else _load_teacher(teacher, recipe, device)
    training = Training(
        recipe,
        seed,
        teacher_model,
        device,
        precision=precision,
        micro_batch=micro_batch,
        compiled=compiled,
    )
    height, width = dataset.image_shape[:2]
    if {height, width} != {size := IMAGE_SIZES[recipe.network]}:
        raise ValueError(
            f"'{dataset.name}' has {height}x{width} images, network '{recipe.network}' takes "
            f"{size}x{size}; resize the images beforehand"
        )
    sources = {
        "data_sha256": dataset.sha256(),
        "teacher_sha256": sha256(find_checkpoint(teacher)) if teacher else None,
    }
    saves = Saves(
        training, out, sources, dataset.name, str(teacher) if teacher else None, provenance, keep
    )
    saves.begin(resume)
    make_folder(out)
    _say(training, batch_division(training))
    _run(training, dataset, saves, rhythm, tensorboard)
    return saves.checkpoint


def recipe_images(
    recipe: Recipe, source: str | None = None, max_unreadable: int = 0
) -> TrainingImages:
    """The training images of a recipe, at the size of its network.

    Args:
        recipe: Names network and data set.
        source: Name or path of other images; the recipe's data set by default.
        max_unreadable: Leave out so many images that cannot be decoded.

    Raises:
        ValueError: Unknown network; see `training_images` too.
    """
    if recipe.network not in IMAGE_SIZES:
        raise ValueError(unknown("network", recipe.network, IMAGE_SIZES))
    try:
        return training_images(
            source or recipe.dataset, IMAGE_SIZES[recipe.network], max_unreadable
        )
    except DownloadError:
        raise
    except ValueError as error:
        if source or Path(recipe.dataset).exists():
            raise
        raise ValueError(f"{error}; give the recipe's data, or others, with --data") from error


def _load_teacher(teacher: str | Path, recipe: Recipe, device: str) -> CheckpointModel:
    model = load_model(teacher, device)
    if model.info.parameterization != "edm":
        raise ValueError(f"teacher '{teacher}' is no EDM denoiser; give one trained by EDM")
    if (data := getattr(model.info.recipe, "dataset", recipe.dataset)) != recipe.dataset:
        raise ValueError(
            f"teacher '{teacher}' was trained on {data}, the recipe is for {recipe.dataset}; give "
            "a teacher of the same data"
        )
    return model


def batch_division(training: Training) -> str | None:
    """How the global batch is divided, in words; None where it goes through whole."""
    count, processes = training.recipe.batch_size, training.num_processes
    shares = [shard(count, rank, processes) for rank in range(processes)]
    sizes = sorted({rows.stop - rows.start for rows in shares})
    if processes == 1 and count <= training.micro_batch:
        return None
    text = f"a batch of {count}: "
    if processes > 1:
        text += f"{' or '.join(map(str, sizes))} images in each of {processes} processes, "
    if sizes[-1] > training.micro_batch:
        text += f"gradients added up over parts of {training.micro_batch}, "
    return text + "every image with the same weight"


def _run(
    training: Training, dataset: TrainingImages, saves: Saves, rhythm: Rhythm, tensorboard: bool
) -> None:
    """The steps that are left, and the last save."""
    recipe = training.recipe
    source = BatchSource(dataset, recipe, training.seed, training.rank, training.num_processes)
    batches = prefetched(source, range(training.step, recipe.total_steps), training.device)
    with contextlib.ExitStack() as stack:
        received = stack.enter_context(stop_signals())
        stack.callback(batches.close)
        watch = None
        if training.rank == 0:
            watch = Watch(training, saves.folder, rhythm.log_every, tensorboard)
            stack.callback(watch.close)
        before = time.perf_counter()
        while training.step < recipe.total_steps:
            with saves.after_failure():
                loss = training.train_step(next(batches))
            now = time.perf_counter()
            training.duration_s, before = training.duration_s + now - before, now
            problem = watch.after_step(loss) if watch else None
            stop = all_reduce_max(DIVERGED if problem else max(received, default=0))
            if stop == DIVERGED:
                raise FloatingPointError(saves.advice(problem or "the loss has diverged"))
            if stop:
                saves.save()
                _leave(training, stop)
            if watch and rhythm.sample_every and training.step % rhythm.sample_every == 0:
                watch.look(dataset)
            if training.step % rhythm.save_every == 0 and training.step < recipe.total_steps:
                saves.save()
    saves.save()


@contextlib.contextmanager
def stop_signals() -> Iterator[set[int]]:
    """The signals to stop that have come; without `torchrun`, a second one stops at once.

    `torchrun` itself passes on to its processes what they have received already.
    """
    received: set[int] = set()

    def note(number: int, frame: FrameType | None) -> None:
        if received and not distributed.is_initialized():
            raise KeyboardInterrupt
        received.add(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may change what signals do
        return
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(training: Training, number: int) -> Never:
    _say(training, f"stopped at step {training.step} and saved; go on with --resume")
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _say(training: Training, text: str | None) -> None:
    if text and training.rank == 0:
        tqdm.write(f"{training.recipe.name}: {text}", file=sys.stderr)
