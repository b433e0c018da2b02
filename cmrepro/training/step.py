"""One training step: loss, gradient, optimizer, target network and average."""

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmrepro.checkpoints.io import check_parameters
from cmrepro.consistency.distances import (
    LPIPS,
    Distance,
    EfficientNetDistance,
    l1,
    l2,
    pseudo_huber,
)
from cmrepro.consistency.losses import (
    Model,
    consistency_distillation_loss,
    consistency_training_loss,
    edm_loss,
)
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import SOLVERS
from cmrepro.distributed import all_reduce_mean, rank_and_world_size
from cmrepro.networks.presets import build_network
from cmrepro.schema import unknown
from cmrepro.settings import Recipe
from cmrepro.training.batches import MAX_SEED, Batch, dropout_seed
from cmrepro.training.schedules import learning_rate_at, scales_and_mu

DISTANCES: dict[str, Callable[[], Distance]] = {
    "l1": lambda: l1,
    "l2": lambda: l2,
    "pseudo-huber": lambda: pseudo_huber,
    "lpips": LPIPS,
    "lpips-average": lambda: LPIPS("average"),
    "efficientnet": EfficientNetDistance,
}
OPTIMIZERS = {"radam": torch.optim.RAdam}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EDM_LOG_MEAN, EDM_LOG_STD = -1.2, 1.2  # Karras et al. (2022), Table 1: ln(t) of training


def build_distance(name: str, device: torch.device) -> Distance:
    """The distance d of a recipe, on `device`."""
    if name not in DISTANCES:
        raise ValueError(unknown("distance", name, DISTANCES))
    return on_device(DISTANCES[name](), device)


def on_device(distance: Distance, device: torch.device) -> Distance:
    """A distance on a device, in the memory format of the training."""
    if isinstance(distance, nn.Module):
        return distance.to(device).to(memory_format=torch.channels_last)
    return distance


def ema_update(average: list[Tensor], online: list[Tensor], decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * online, parameter by parameter."""
    with torch.no_grad():
        torch._foreach_lerp_(average, online, 1.0 - decay)


class Training:
    """Networks, optimizer and counters of one run, in one process or in each of several.

    Weights, averages and optimizer are in float32 in every precision; half of it is for the
    networks' passes alone, not for scalings, distances and losses.

    Args:
        recipe: What to train.
        seed: Of initial weights, order, flips, noise and times.
        teacher: EDM denoiser: CD's teacher, and the initial weights where the recipe says so.
        device: Where to train.
        precision: "fp32", "bf16", or "fp16" with scaled losses; by default the recipe's: "fp16"
            where that is in mixed precision.
        micro_batch: Images that go through the network at once; by default a device's share in
            the source. The rest of the process's share follows, and the gradients add up.
        compiled: Compile the networks.
        distance: d of the consistency losses, on the device, in the place of the recipe's.

    Raises:
        ValueError: The teacher is missing, superfluous or of another network; an unknown
            optimizer, solver, distance or precision; the seed is out of range; the processes are
            more than the images of a batch; dropout in compiled networks.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        teacher: PreconditionedModel | None = None,
        device: str | torch.device = "cpu",
        *,
        precision: str | None = None,
        micro_batch: int | None = None,
        compiled: bool = False,
        distance: Distance | None = None,
    ) -> None:
        self.rank, self.num_processes = rank_and_world_size()
        self.recipe, self.seed, self.teacher = recipe, seed, teacher
        self.device = torch.device(device)
        self.precision = precision or ("fp16" if recipe.mixed_precision else "fp32")
        self.micro_batch = micro_batch or -(-recipe.batch_size // recipe.num_gpus)
        self._check(compiled)
        torch.manual_seed(seed)
        network = build_network(recipe.network, recipe.dropout)
        self.online = self._model(network)
        if recipe.initialisation == "teacher":
            assert teacher is not None
            weights = teacher.network.state_dict()
            check_parameters(network.state_dict(), weights, "the teacher", recipe.network)
            network.load_state_dict(weights)
        self.ema = copy.deepcopy(self.online).eval().requires_grad_(False)
        self.target = self.online
        if recipe.method != "edm":
            self.distance = distance or build_distance(str(recipe.distance), self.device)
            if recipe.target_ema != 0:
                self.target = copy.deepcopy(self.online).requires_grad_(False)
        # Listed once: to walk through the modules takes nearly as long as an average.
        listed: list[list[Tensor]] = [
            list(model.parameters()) for model in (self.online, self.ema, self.target)
        ]
        self._weights, self._ema_weights, self._target_weights = listed
        self.optimizer = OPTIMIZERS[recipe.optimizer](
            self._weights, lr=recipe.learning_rate, foreach=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if compiled:
            for network in {
                model.network for model in (self.online, self.target, teacher) if model
            }:
                network.compile()
        self._trained: nn.Module = self.online
        if self.num_processes > 1:
            self._trained = DistributedDataParallel(self.online)
        self.step = 0
        self.duration_s = 0.0
        self.between_steps = True  # False while weights, averages and counter disagree

    def _check(self, compiled: bool) -> None:
        recipe = self.recipe
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"got seed = {self.seed}; allowed is 0 to {MAX_SEED - 1}")
        needs_teacher = recipe.method == "cd" or recipe.initialisation == "teacher"
        if needs_teacher != (self.teacher is not None):
            raise ValueError(
                f"recipe '{recipe.name}' {'needs a' if needs_teacher else 'takes no'} teacher; "
                f"{'give one with' if needs_teacher else 'leave out'} --teacher"
            )
        if recipe.batch_size < self.num_processes:
            raise ValueError(
                f"got batch_size = {recipe.batch_size} for {self.num_processes} processes; each "
                "needs an image: start fewer"
            )
        if recipe.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", recipe.optimizer, OPTIMIZERS))
        if recipe.method == "cd" and recipe.solver not in SOLVERS:
            raise ValueError(unknown("solver", str(recipe.solver), SOLVERS))
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        if compiled and recipe.dropout:
            raise ValueError(
                f"got --compile with dropout = {recipe.dropout}; compiled, the online and the "
                "target network do not get the same mask: leave out one of the two"
            )

    def _model(self, network: nn.Module) -> PreconditionedModel:
        model = PreconditionedModel(
            network,
            "edm" if self.recipe.method == "edm" else "boundary",
            self.recipe.sigma_data,
            self.recipe.sigma_min,
        )
        return model.to(self.device).to(memory_format=torch.channels_last).train()

    def _in_precision(self, model: Model) -> Model:
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return model

        def call(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            with torch.autocast(self.device.type, dtype):
                return model(x_t, t, labels)

        return call

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch on the device at the present step."""
        recipe, z = self.recipe, batch.z
        x = batch.images / 127.5 - 1
        conditional = getattr(self.online.network.config, "num_classes", 0)
        labels = batch.labels if conditional else None
        online = self._in_precision(self._trained)
        if recipe.method == "edm":
            t = (EDM_LOG_MEAN + EDM_LOG_STD * batch.draws).exp()
            return edm_loss(online, x, z, t, recipe.sigma_data, labels).mean()
        num_scales, _ = scales_and_mu(recipe, self.step)
        times = karras_times(num_scales, recipe.sigma_min, recipe.sigma_max, recipe.rho).to(x)
        target = self._in_precision(self.target)
        if recipe.method == "ct":
            return consistency_training_loss(
                online, target, x, z, batch.draws, times, self.distance, labels
            ).mean()
        assert self.teacher is not None
        return consistency_distillation_loss(
            online,
            target,
            self._in_precision(self.teacher),
            x,
            z,
            batch.draws,
            times,
            SOLVERS[str(recipe.solver)],
            self.distance,
            labels,
        ).mean()

    def gradients(self, batch: Batch) -> Tensor:
        """Set the gradients of the global batch's mean loss, scaled in fp16; returns that loss.

        Each image has the same weight, whatever the sizes of parts and shares.

        Args:
            batch: This process's share.
        """
        torch.manual_seed(dropout_seed(self.seed, self.step, self.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(self.micro_batch)
        loss = torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            # The mean over processes follows, with the gradients of the last part.
            weight = len(part) * self.num_processes / self.recipe.batch_size
            with contextlib.ExitStack() as stack:
                if isinstance(self._trained, DistributedDataParallel) and i < len(parts) - 1:
                    stack.enter_context(self._trained.no_sync())
                part_loss = weight * self.loss(part.to(self.device))
                self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        return all_reduce_mean(loss)

    def train_step(self, batch: Batch) -> float:
        """One optimizer step with the updates of both averages; the loss before it.

        Where the gradient overflows in fp16 the step is taken again with half the scale, so that
        steps count and see images as in the other precisions.

        Args:
            batch: This process's share of the batch of the present step.

        Raises:
            FloatingPointError: The gradient is not finite.
        """
        loss = self.gradients(batch)
        while not self._gradient_is_finite():
            if self.scaler.get_scale() <= 1:  # without scaling it is 1 throughout
                raise FloatingPointError(
                    f"the gradient of step {self.step} is not finite (loss {loss.item():g})"
                )
            self.scaler.update()
            loss = self.gradients(batch)
        self.update()
        return loss.item()

    def _gradient_is_finite(self) -> bool:
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._weights if p.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def update(self) -> None:
        """The optimizer's step from the present gradients, then those of both averages."""
        self.between_steps = False
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.recipe, self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.update_averages()
        self.step += 1
        self.between_steps = True

    def update_averages(self) -> None:
        """The target network's mu and the EMA of the weights that are sampled from."""
        if self.target is not self.online:
            mu = scales_and_mu(self.recipe, self.step)[1]
            ema_update(self._target_weights, self._weights, mu)
        ema_update(self._ema_weights, self._weights, self.recipe.ema_rate)
