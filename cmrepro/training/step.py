"""One training step: loss, gradient, optimizer, target network and average."""

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmrepro.checkpoints.io import check_parameters
from cmrepro.consistency.distances import DISTANCES, Distance
from cmrepro.consistency.losses import Model
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.solvers import SOLVERS
from cmrepro.distributed import all_reduce_mean, rank_and_world_size
from cmrepro.networks.presets import build_network
from cmrepro.schema import lookup
from cmrepro.settings import Recipe
from cmrepro.training.data import MAX_SEED, Batch, dropout_seed
from cmrepro.training.methods import METHODS, Models, learning_rate_at, scales_and_mu
from cmrepro.training.muon import Muon

OPTIMIZERS = {"radam": torch.optim.RAdam, "muon": Muon}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def needs_teacher(recipe: Recipe) -> bool:
    """True if the loss or the initial weights come from a teacher."""
    return (
        recipe.method not in ("edm", "ct", "continuous-ct") or recipe.initialisation == "teacher"
    )


def ema_update(average: list[Tensor], online: list[Tensor], decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * online, parameter by parameter."""
    with torch.no_grad():
        torch._foreach_lerp_(average, online, 1.0 - decay)


class Training:
    """Networks, optimizer and counters of a run; only networks' passes are in half precision."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,  # seed of initial weights, order, flips, noise and times
        teacher: PreconditionedModel | None = None,  # EDM denoiser, where the recipe needs one
        device: str | torch.device = "cpu",
        *,
        precision: str | None = None,  # "fp32", "bf16" or "fp16"; the recipe's by default
        # Images of one forward pass; by default a device's share of the batch in the source
        micro_batch: int | None = None,
        distance: Distance | None = None,  # d in the place of the recipe's
    ) -> None:
        self.rank, self.world_size = rank_and_world_size()
        self.recipe, self.seed, self.teacher = recipe, seed, teacher
        self.device, self.method = torch.device(device), METHODS[recipe.method]
        self.precision = precision or ("fp16" if recipe.mixed_precision else "fp32")
        self.micro_batch = micro_batch or -(-recipe.batch_size // recipe.num_gpus)
        self._check()
        self._dtype = lookup("precision", self.precision, PRECISIONS)
        solver = lookup("solver", recipe.solver, SOLVERS) if recipe.solver else None
        if recipe.distance:
            distance = distance or lookup("distance", recipe.distance, DISTANCES)()
        if isinstance(distance, nn.Module):
            distance.to(self.device).to(memory_format=torch.channels_last)

        torch.manual_seed(seed)
        network = build_network(recipe.network, recipe.dropout)
        if teacher and recipe.initialisation == "teacher":
            weights = teacher.network.state_dict()
            check_parameters(network.state_dict(), weights, "the teacher", recipe.network)
            network.load_state_dict(weights)
        kind = self.method.parameterization
        model = PreconditionedModel(network, kind, recipe.sigma_data, recipe.sigma_min)
        self.online = model.to(self.device).to(memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.online).eval().requires_grad_(False)
        # With mu = 0 the target network is the online network.
        self.target = self.online
        if recipe.target_ema or recipe.mu0:
            self.target = copy.deepcopy(self.online).requires_grad_(False)
        # Listed once: to walk through the modules takes nearly as long as an average.
        self._weights: list[Tensor] = [*self.online.parameters()]
        self._ema_weights: list[Tensor] = [*self.ema.parameters()]
        self._target_weights: list[Tensor] = [*self.target.parameters()]
        optimizer = OPTIMIZERS[recipe.optimizer]
        self.optimizer = optimizer(self._weights, lr=recipe.learning_rate, foreach=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._parallel = DistributedDataParallel(self.online) if self.world_size > 1 else None
        self._models = Models(
            recipe,
            online=self._in_precision(self._parallel or self.online),
            target=self._in_precision(self.target),
            teacher=self._in_precision(teacher) if teacher else None,
            solver=solver,
            distance=distance,
        )
        self.step, self.duration_s = 0, 0.0

    def _check(self) -> None:
        recipe, teacher = self.recipe, self.teacher
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"got seed = {self.seed}; allowed is 0 to {MAX_SEED - 1}")
        if needs_teacher(recipe) != (teacher is not None):
            need = "takes no teacher; leave out" if teacher else "needs a teacher; give"
            raise ValueError(f"recipe '{recipe.name}' {need} --teacher")
        if teacher and teacher.parameterization != "edm":
            raise ValueError("the teacher is no EDM denoiser; give one trained by EDM")
        if recipe.batch_size < self.world_size:
            allowed = f"allowed is {self.world_size} or more, an image a process"
            raise ValueError(f"got batch_size = {recipe.batch_size}; {allowed}")

    def _in_precision(self, model: nn.Module) -> Model:
        if self._dtype is None:
            return model
        return torch.autocast(self.device.type, self._dtype)(model.__call__)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch on the device."""
        images, z, t, s, labels = batch
        if not self.online.num_classes:
            labels = None
        losses = self.method.loss(self._models, images / 127.5 - 1, z, t, s, labels)
        if self.recipe.weighting:
            _, c_out, _ = self.online.scalings(t)
            losses = losses / c_out**2
        return losses.mean()

    def gradients(self, batch: Batch) -> Tensor:
        """Set the gradients of the global batch's mean loss (scaled in fp16); return that loss."""
        torch.manual_seed(dropout_seed(self.seed, self.step, self.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.parts(self.micro_batch)
        loss = torch.zeros((), device=self.device)
        # Each image has the same weight. DDP takes the mean over processes at the last part.
        for i, part in enumerate(parts):
            weight = len(part.images) * self.world_size / self.recipe.batch_size
            # From pinned memory the copy runs beside the computation.
            part = part.map(lambda tensor: tensor.to(self.device, non_blocking=True))
            parallel = self._parallel if i < len(parts) - 1 else None
            with parallel.no_sync() if parallel else contextlib.nullcontext():
                part_loss = weight * self.loss(part)
                self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        return all_reduce_mean(loss)

    def train_step(self, batch: Batch) -> float:
        """One optimizer step, with the target network and the EMA; returns the loss before it."""
        while True:  # in fp16 an overflow repeats the step with half the scale, so all steps count
            loss = self.gradients(batch)
            self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self._weights if p.grad is not None]
            if torch.nn.utils.get_total_norm(gradients).isfinite():
                break
            if self.scaler.get_scale() <= 1:  # without scaling it is 1 throughout
                got = f"the gradient of step {self.step} is not finite"
                raise FloatingPointError(f"{got} (loss {loss.item():g})")
            self.scaler.update()
        self.update()
        return loss.item()

    def update(self) -> None:
        """Step by the present gradients, then update the target network and the EMA."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.recipe, self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.update_target_and_ema()
        self.step += 1

    def update_target_and_ema(self) -> None:
        """Update the target network with decay mu(k), and the EMA weights used for sampling."""
        if self.target is not self.online:
            _, mu = scales_and_mu(self.recipe, self.step)
            ema_update(self._target_weights, self._weights, mu)
        ema_update(self._ema_weights, self._weights, self.recipe.ema_rate)
