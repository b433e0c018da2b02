"""The training loop: one process, any recipe.

Everything random is a function of (seed, step), so that a resumed run sees the same images, flips,
noise and times as an undisturbed one.
"""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmrepro.checkpoints.io import (
    CheckpointInfo,
    check_weights,
    find_checkpoint,
    load_model,
    read_info,
    save_checkpoint,
)
from cmrepro.consistency.distances import (
    LPIPS,
    Distance,
    EfficientNetDistance,
    l1,
    l2,
    pseudo_huber,
)
from cmrepro.consistency.losses import (
    consistency_distillation_loss,
    consistency_training_loss,
    edm_loss,
)
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.schedules import karras_times, num_scales_at, target_ema_at
from cmrepro.consistency.solvers import SOLVERS
from cmrepro.datasets import ImageDataset
from cmrepro.files import atomic_path, make_folder, sha256
from cmrepro.names import unknown
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.training.batches import MAX_SEED, BatchSource, mixed_seed, seeded_generator
from cmrepro.training.recipes import Recipe
from cmrepro.training.state import load_state, save_state

DISTANCES: dict[str, Callable[[], Distance]] = {
    "l1": lambda: l1,
    "l2": lambda: l2,
    "pseudo-huber": lambda: pseudo_huber,
    "lpips": LPIPS,
    "efficientnet": EfficientNetDistance,
}
OPTIMIZERS = {"radam": torch.optim.RAdam}
EDM_LOG_MEAN, EDM_LOG_STD = -1.2, 1.2  # Karras et al. (2022), Table 1: ln(t) of training


def build_distance(name: str, device: torch.device) -> Distance:
    """The distance d of a recipe, on `device`."""
    if name not in DISTANCES:
        raise ValueError(unknown("distance", name, DISTANCES))
    distance = DISTANCES[name]()
    if isinstance(distance, nn.Module):
        return distance.to(device).to(memory_format=torch.channels_last)
    return distance


def scales_and_mu(recipe: Recipe, step: int) -> tuple[int, float]:
    """N and mu at a step: fixed, or N(k) and mu(k)."""
    if recipe.num_scales is not None:
        num_scales = recipe.num_scales
    else:
        assert recipe.s0 is not None and recipe.s1 is not None
        schedule_steps = recipe.schedule_steps or recipe.total_steps
        num_scales = num_scales_at(step, schedule_steps, recipe.s0, recipe.s1)
    if recipe.target_ema is not None:
        return num_scales, recipe.target_ema
    assert recipe.mu0 is not None and recipe.s0 is not None
    return num_scales, target_ema_at(num_scales, recipe.s0, recipe.mu0, recipe.mu_form)


def two_step_time(recipe: Recipe) -> float | None:
    """The second sampling time that the recipe's index means on its last time grid, if it has one.

    Where N grows, the grid is the last one, of s1 + 1 points (deviation `ct-num-boundaries`).
    """
    if recipe.two_step_index is None:
        return None
    num_scales = scales_and_mu(recipe, recipe.schedule_steps or recipe.total_steps)[0]
    times = karras_times(num_scales, recipe.sigma_min, recipe.sigma_max, recipe.rho)
    return times[recipe.two_step_index].item()


def ema_update(average: nn.Module, online: nn.Module, decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * online, parameter by parameter."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(online.parameters()), 1.0 - decay)


class Training:
    """Networks, optimizer and counters of one run.

    Args:
        recipe: What to train.
        seed: Of initial weights, order, flips, noise and times.
        teacher: EDM denoiser: CD's teacher, and the initial weights where the recipe says so.
        device: Where to train.

    Raises:
        ValueError: The teacher is missing, superfluous or of another network; an unknown
            optimizer, solver or distance; the seed is out of range; the batch does not divide into
            num_gpus parts; mixed precision.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        teacher: PreconditionedModel | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not 0 <= seed < MAX_SEED:
            raise ValueError(f"got seed = {seed}; allowed is 0 to {MAX_SEED - 1}")
        needs_teacher = recipe.method == "cd" or recipe.initialisation == "teacher"
        if needs_teacher != (teacher is not None):
            raise ValueError(
                f"recipe '{recipe.name}' {'needs a' if needs_teacher else 'takes no'} teacher; "
                f"{'give one with' if needs_teacher else 'leave out'} --teacher"
            )
        if recipe.batch_size % recipe.num_gpus:
            raise ValueError(
                f"got batch_size = {recipe.batch_size} for num_gpus = {recipe.num_gpus}; it must "
                "divide into so many equal parts: --set num_gpus=1 takes it whole"
            )
        if recipe.mixed_precision:
            raise ValueError(
                f"recipe '{recipe.name}' asks for mixed precision, training is in float32 only; "
                "accept that with --set mixed_precision=false"
            )
        if recipe.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", recipe.optimizer, OPTIMIZERS))
        if recipe.method == "cd" and recipe.solver not in SOLVERS:
            raise ValueError(unknown("solver", str(recipe.solver), SOLVERS))
        self.recipe, self.seed, self.teacher = recipe, seed, teacher
        self.device = torch.device(device)
        torch.manual_seed(seed)
        network = build_network(recipe.network, recipe.dropout)
        self.online = self._model(network)
        if recipe.initialisation == "teacher":
            assert teacher is not None
            weights = teacher.network.state_dict()
            check_weights(network, weights, "the teacher", recipe.network)
            network.load_state_dict(weights)
        self.ema = copy.deepcopy(self.online).eval().requires_grad_(False)
        self.target = self.online
        if recipe.method != "edm":
            self.distance = build_distance(str(recipe.distance), self.device)
            if recipe.target_ema != 0:
                self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            self.online.parameters(), lr=recipe.learning_rate, foreach=True
        )
        self.step = 0
        self.duration_s = 0.0
        self.between_steps = True  # False while weights, averages and counter disagree

    def _model(self, network: nn.Module) -> PreconditionedModel:
        model = PreconditionedModel(
            network,
            "edm" if self.recipe.method == "edm" else "boundary",
            self.recipe.sigma_data,
            self.recipe.sigma_min,
        )
        return model.to(self.device).to(memory_format=torch.channels_last).train()

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean loss of the batch at the present step."""
        recipe = self.recipe
        z = torch.randn(x.shape, generator=generator).to(x)
        if recipe.method == "edm":
            n = torch.randn(len(x), generator=generator).to(x)
            t = (EDM_LOG_MEAN + EDM_LOG_STD * n).exp()
            return edm_loss(self.online, x, z, t, recipe.sigma_data, labels).mean()
        num_scales, _ = scales_and_mu(recipe, self.step)
        times = karras_times(num_scales, recipe.sigma_min, recipe.sigma_max, recipe.rho).to(x)
        indices = torch.randint(num_scales - 1, (len(x),), generator=generator).to(x.device)
        if recipe.method == "ct":
            return consistency_training_loss(
                self.online, self.target, x, z, indices, times, self.distance, labels
            ).mean()
        assert self.teacher is not None
        return consistency_distillation_loss(
            self.online,
            self.target,
            self.teacher,
            x,
            z,
            indices,
            times,
            SOLVERS[str(recipe.solver)],
            self.distance,
            labels,
        ).mean()

    def train_step(self, source: BatchSource) -> float:
        """One optimizer step with the updates of both averages; the loss before it.

        The batch goes through the network in as many parts as the source had devices, one after
        the other, so that the global batch holds within the memory of one.

        Raises:
            FloatingPointError: The gradient is not finite.
        """
        generator = seeded_generator(self.seed, self.step, "step")
        x, labels = source.batch(self.step, generator)
        x = x.to(self.device)
        conditional = bool(getattr(self.online.network.config, "num_classes", 0))
        labels = labels.to(self.device) if conditional and labels is not None else None
        torch.manual_seed(mixed_seed(self.seed, self.step))  # dropout masks
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.recipe.num_gpus
        label_parts = [None] * parts if labels is None else labels.chunk(parts)
        loss = torch.zeros((), device=self.device)
        for part, part_labels in zip(x.chunk(parts), label_parts, strict=True):
            part_loss = self.loss(part, part_labels, generator) / parts
            part_loss.backward()
            loss += part_loss.detach()
        gradients = [p.grad for p in self.online.parameters() if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(
                f"the gradient of step {self.step} is not finite (loss {loss.item():g}); train "
                "into another folder with a lower learning_rate"
            )
        self.between_steps = False
        self.optimizer.step()
        if self.target is not self.online:
            ema_update(self.target, self.online, scales_and_mu(self.recipe, self.step)[1])
        ema_update(self.ema, self.online, self.recipe.ema_rate)
        self.step += 1
        self.between_steps = True
        return loss.item()


def train(
    recipe: Recipe,
    dataset: ImageDataset,
    out: Path,
    *,
    seed: int = 0,
    teacher: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    save_every: int = 500,
    log_every: int = 50,
    provenance: dict[str, object] | None = None,
) -> Path:
    """Train a recipe to its last step and write the checkpoint of its EMA weights.

    `out` then holds NAME.safetensors, state.pt (to resume) and log.jsonl. The first two are also
    written every `save_every` steps and when interrupted.

    Args:
        recipe: What to train.
        dataset: Training images.
        out: Folder.
        seed: Of everything random.
        teacher: Name or path of the EDM checkpoint, for recipes that need one.
        resume: Go on from out/state.pt.
        device: "cpu", "cuda", …
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        provenance: Put into the checkpoint's origin as it is.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: The folder holds another run, or none to resume; the images are not of the
            network's size; the teacher is no EDM denoiser or of other data; `out` cannot be
            written; see `Training` too.
        FloatingPointError: The gradient is not finite.
    """
    teacher_model = None
    if teacher is not None:
        teacher_model = load_model(teacher, device)
        info = teacher_model.info
        if info.parameterization != "edm":
            raise ValueError(f"teacher '{teacher}' is no EDM denoiser; give one trained by EDM")
        if info.recipe.get("dataset", recipe.dataset) != recipe.dataset:
            raise ValueError(
                f"teacher '{teacher}' was trained on {info.recipe['dataset']}, the recipe is for "
                f"{recipe.dataset}; give a teacher of the same data"
            )
    training = Training(recipe, seed, teacher_model, device)
    height, width = dataset.images.shape[1:3]
    if {height, width} != {size := IMAGE_SIZES[recipe.network]}:
        raise ValueError(
            f"'{dataset.name}' has {height}x{width} images, network '{recipe.network}' takes "
            f"{size}x{size}; resize the images beforehand"
        )
    state_path, model_path = out / "state.pt", out / f"{recipe.name}.safetensors"
    source = BatchSource(dataset, recipe.batch_size, recipe.horizontal_flip, seed)
    origin = {
        "seed": seed,
        "teacher": str(teacher) if teacher else None,
        "teacher_sha256": sha256(find_checkpoint(teacher)) if teacher else None,
        "data": dataset.name,
        "data_sha256": dataset.sha256(),
        **(provenance or {}),
    }
    if resume:
        load_state(training, state_path)
        earlier = read_info(model_path).origin
        for key in ("data_sha256", "teacher_sha256"):
            if earlier.get(key) != origin[key]:
                raise ValueError(
                    f"{model_path} is of another training: {key} is {earlier.get(key)}, not "
                    f"{origin[key]}; resume with the same data and teacher"
                )
    elif state_path.exists() or model_path.exists():
        raise ValueError(f"{out} already holds a training; go on with --resume or choose another")

    def save() -> None:
        save_state(training, state_path)
        progress = {
            "steps": training.step,
            "images_seen": training.step * recipe.batch_size,
            "duration_s": round(training.duration_s, 1),
            "weights": "ema",
        }
        info = CheckpointInfo(
            recipe.network,
            training.online.parameterization,
            recipe.sigma_data,
            recipe.sigma_min,
            recipe.sigma_max,
            dataclasses.asdict(recipe),
            origin | progress,
            two_step_time(recipe),
        )
        save_checkpoint(model_path, training.ema.network, info)

    make_folder(out)
    losses: list[float] = []
    before = time.perf_counter()
    bar = tqdm(
        total=recipe.total_steps,
        initial=training.step,
        desc=recipe.name,
        unit="step",
        mininterval=5,
    )
    _trim_log(out / "log.jsonl", training.step)
    with bar, open(out / "log.jsonl", "a") as log:
        try:
            while training.step < recipe.total_steps:
                losses.append(training.train_step(source))
                now = time.perf_counter()
                training.duration_s, before = training.duration_s + now - before, now
                bar.update()
                if training.step % log_every == 0:
                    entry = _log_entry(training, losses)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    bar.set_postfix(loss=f"{entry['loss']:.4g}")
                    losses.clear()
                if training.step % save_every == 0:
                    save()
        finally:
            if training.step and training.between_steps:
                save()
    return model_path


def _trim_log(path: Path, step: int) -> None:
    """Drop the lines of a log that lie beyond a step, as a killed run leaves them."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept))


def _log_entry(training: Training, losses: list[float]) -> dict[str, float]:
    recipe = training.recipe
    entry = {
        "step": training.step,
        "images": training.step * recipe.batch_size,
        "loss": sum(losses) / len(losses),
        "duration_s": round(training.duration_s, 1),
    }
    if recipe.method != "edm":
        num_scales, mu = scales_and_mu(recipe, training.step - 1)
        entry |= {"num_scales": num_scales, "mu": mu}
    return entry
