"""The paper's theorems in numbers, on data whose denoiser is known in closed form.

Points of Gaussian mixtures stand for images: (B, D, 1, 1), float64. Orders of convergence are
slopes over log(N - 1), since every interval of the time grid is proportional to 1 / (N - 1) in the
limit. Each quantity is measured on independent replicates, which give the interval of its slope.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Generator, Tensor, nn

from cmrepro.consistency import continuous, losses, samplers, solvers
from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.parameterization import Denoiser, boundary_scalings
from cmrepro.consistency.schedules import karras_times
from cmrepro.files import atomic_path
from cmrepro.progress import progress_bar
from cmrepro.provenance import provenance
from cmrepro.records import THEOREMS, TheoremCheck, TheoremRun
from cmrepro.schema import to_json

SIGMA_MIN, NUM_REPLICATES = 0.002, 8
NUM_SCALES = (33, 65, 129, 257, 513)  # N; each grid has all points of the former
REFERENCE_SCALES = 4097
NUM_FITTED = 3  # finest grids of a slope


class Mixture(NamedTuple):
    """Equal mixture of isotropic Gaussians of one standard deviation."""

    centers: Tensor  # (K, D), float64
    std: float

    def sample(self, count: int, generator: Generator) -> Tensor:
        """Points (B, D, 1, 1)."""
        modes = self.centers[torch.randint(len(self.centers), (count,), generator=generator)]
        return (modes + self.std * normal(modes.shape, generator))[:, :, None, None]

    def denoised(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x_t, t) = E[x | x_t], (B, D, 1, 1): modes' posterior means, by their probabilities."""
        offsets = x_t[:, None, :, 0, 0] - self.centers  # (B, K, D)
        variance = self.std**2 + t[:, None] ** 2
        weights = (-offsets.square().sum(2) / (2 * variance)).softmax(1)  # (B, K)
        means = self.centers + self.std**2 / variance[:, :, None] * offsets
        return (weights[:, :, None] * means).sum(1)[:, :, None, None]

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Gradient of log p_t at x_t, (B, D, 1, 1), from the density by autograd."""
        x_t, variance = x_t.detach().requires_grad_(), self.std**2 + t[:, None] ** 2
        distances = (x_t[:, None, :, 0, 0] - self.centers).square().sum(2)  # (B, K)
        log_density = (-distances / (2 * variance)).logsumexp(1)  # up to a constant in x_t
        return torch.autograd.grad(log_density.sum(), x_t)[0]


def mixtures() -> dict[str, Mixture]:
    """Eight modes on the unit circle; five random ones in 16 dimensions."""
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    cloud = normal((5, 16), torch.Generator().manual_seed(0)) / 4
    return {"ring": Mixture(ring, 0.1), "16-D": Mixture(cloud, 0.3)}


def normal(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class SmoothFunction(nn.Module):
    """Smooth function with f(x, sigma_min) = x that no ODE has as its consistency function."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(normal((dim + 1, 32), generator) / (dim + 1) ** 0.5)
        self.outer = nn.Parameter(normal((32, dim), generator) / 32**0.5)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """f(x_t, t), (B, D, 1, 1)."""
        c_skip, c_out, c_in = (c[:, None] for c in boundary_scalings(t, 0.5, SIGMA_MIN))
        x = x_t[:, :, 0, 0]
        hidden = torch.cat([c_in * x, t.log()[:, None] / 4], 1) @ self.inner
        return (c_skip * x + c_out * (hidden.tanh() @ self.outer))[:, :, None, None]


class Draws(NamedTuple):
    """One replicate: data, noise and times on the coarsest grid."""

    x: Tensor
    z: Tensor
    n: Tensor  # index of t in the coarsest grid, (B,)

    def times(self, num_scales: int) -> tuple[Tensor, Tensor]:
        """T and the next time s of the grid with N points, (B,) each; t is the same for all N."""
        grid = karras_times(num_scales)
        n = self.n * ((num_scales - 1) // (NUM_SCALES[0] - 1))
        return grid[n], grid[n + 1]


def draws(data: Mixture, count: int, seed: int) -> Draws:
    """Draws of replicate number `seed`."""
    generator = torch.Generator().manual_seed(seed)
    x = data.sample(count, generator)
    n = torch.randint(NUM_SCALES[0] - 1, (count,), generator=generator)
    return Draws(x, normal(x.shape, generator), n)


Errors = NDArray[np.float64]  # (replicates, N)


def over_grids(
    data: Mixture, count: int, quantity: Callable[[Draws, Tensor, Tensor], Tensor]
) -> Errors:
    """A quantity of draws and their times t and s, for each replicate of `count` and each N."""
    replicates = [draws(data, count, seed) for seed in range(NUM_REPLICATES)]
    values = [[quantity(draw, *draw.times(n)).item() for n in NUM_SCALES] for draw in replicates]
    return np.array(values)


def trajectories(data: Mixture, count: int) -> tuple[Tensor, Tensor]:
    """Points of ODE trajectories at the times of the coarsest grid, (S, B, D, 1, 1), and ends."""
    times = karras_times(REFERENCE_SCALES)
    x_t = times[0] * normal((count, data.centers.shape[1], 1, 1), Generator().manual_seed(0))
    every, points = (REFERENCE_SCALES - 1) // (NUM_SCALES[0] - 1), []
    for i, (t, s) in enumerate(pairwise(times)):
        if i % every == 0:
            points.append(x_t)
        x_t = solvers.heun_step(data.denoised, x_t, t.expand(count), s.expand(count))
    return torch.stack(points), x_t


def iterated_solver(
    denoiser: Denoiser, x_t: Tensor, num_scales: int, step: solvers.OdeStep
) -> Tensor:
    """The function with zero CD loss: the solver iterated down the grid with N points.

    x_t (S, B, D, 1, 1) are points at the S times of the coarsest grid.
    """
    every = (num_scales - 1) // (NUM_SCALES[0] - 1)
    x = x_t.clone()
    for i, (t, s) in enumerate(pairwise(karras_times(num_scales))):
        active = x[: i // every + 1]
        points = active.flatten(0, 1)
        ends = [time.expand(len(points)) for time in (t, s)]
        active.copy_(step(denoiser, points, *ends).view_as(active))
    return x


def solver_errors(data: Mixture, count: int = 16) -> Iterator[tuple[str, Errors]]:
    """Theorem 1 and self-consistency, of the function with zero CD loss."""
    x_t, end = trajectories(data, NUM_REPLICATES * count)

    def by_replicate(offsets: list[Tensor]) -> Tensor:
        norms = torch.stack(offsets).flatten(3).norm(dim=3)  # (N, S, B)
        return norms.unflatten(2, (NUM_REPLICATES, count)).permute(2, 0, 1, 3).flatten(2)

    for name, step in solvers.SOLVERS.items():
        outputs = [iterated_solver(data.denoised, x_t, n, step) for n in NUM_SCALES]
        errors = by_replicate([x - end for x in outputs])
        yield f"theorem1/{name}/sup", errors.amax(2).numpy()
        yield f"theorem1/{name}/mean", errors.mean(2).numpy()
        if name == "heun":
            spread = by_replicate([x[1:] - x[:1] for x in outputs])
            yield "self-consistency", spread.amax(2).numpy()


def distillation_minus_training(data: Mixture, distance: Distance, count: int = 4096) -> Errors:
    """Theorem 2: |L_CD - L_CT| for two different smooth functions f and f_target.

    Of one image the difference is of first order in t - s. That term is linear in x - E[x | x_t],
    so its expectation is zero (Lemma 1), and it is subtracted for the sake of its variance.
    """
    online, target = (SmoothFunction(data.centers.shape[1], seed) for seed in (0, 1))

    def difference(draw: Draws, t: Tensor, s: Tensor) -> Tensor:
        x, z, _ = draw
        distillation = losses.consistency_distillation_loss(
            online, target, data.denoised, x, z, t, s, solvers.euler_step, distance
        )
        training = losses.consistency_training_loss(online, target, x, z, t, s, distance)
        x_t = losses.noisy(x, z, t)
        mean = x_t + t[:, None, None, None] ** 2 * data.score(x_t, t)  # E[x | x_t]
        share = (s / t - 1)[:, None, None, None]
        x_s = (x_t + share * (x_t - mean)).requires_grad_()  # of CD; that of CT has x for the mean
        value = distance(online(x_t, t), target(x_s, s)).sum()
        first_order = torch.autograd.grad(value, x_s)[0] * share * (x - mean)
        return (distillation - training - first_order.flatten(1).sum(1)).mean().abs()

    return over_grids(data, count, difference)


def training_loss(data: Mixture, count: int = 4096) -> Errors:
    """Theorem 2: L_CT of two different functions, whose L_CD stays above zero."""
    online, target = (SmoothFunction(data.centers.shape[1], seed) for seed in (0, 1))

    def loss(draw: Draws, t: Tensor, s: Tensor) -> Tensor:
        return losses.consistency_training_loss(online, target, draw.x, draw.z, t, s, l2).mean()

    return over_grids(data, count, loss)


def limit_errors(data: Mixture, count: int = 512) -> Iterator[tuple[str, Errors]]:
    """Theorems 3 to 6: losses over a power of t - s against those in continuous time.

    Relative distances of their values (3, 4) or gradients (5, 6), for f_target = f.
    """
    f = SmoothFunction(data.centers.shape[1])
    weights = tuple(f.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    def squared_l2(prediction: Tensor, tangent: Tensor) -> Tensor:
        return continuous.tangent_l2(prediction, tangent) ** 2 / prediction[0].numel()

    def distillation(draw: Draws, t: Tensor, s: Tensor, distance: Distance) -> Tensor:
        return losses.consistency_distillation_loss(
            f, f, data.denoised, draw.x, draw.z, t, s, solvers.euler_step, distance
        )

    def training(draw: Draws, t: Tensor, s: Tensor, distance: Distance) -> Tensor:
        return losses.consistency_training_loss(f, f, draw.x, draw.z, t, s, distance)

    def errors(
        loss: Callable[..., Tensor],
        distance: Distance,
        limit: Callable[..., Tensor],
        objective: Callable[..., Tensor],
        power: int,
        compared: Callable[[Tensor], Tensor] = torch.clone,
    ) -> Errors:
        def error(draw: Draws, t: Tensor, s: Tensor) -> Tensor:
            found = compared((loss(draw, t, s, distance) / (t - s) ** power).mean())
            expected = compared(limit(draw.x, draw.z, t, objective=objective).mean())
            return (found - expected).norm() / expected.norm()

        return over_grids(data, count, error)

    cd_limit = partial(continuous.continuous_distillation_loss, f, data.denoised)
    ct_limit = partial(continuous.continuous_training_loss, f)
    pseudo = continuous.stop_gradient(l2)
    yield "theorem3", errors(distillation, l2, cd_limit, squared_l2, 2)
    yield "theorem4", errors(distillation, l1, cd_limit, continuous.tangent_l1, 1)
    yield "theorem5", errors(distillation, l2, cd_limit, pseudo, 1, gradient)
    yield "theorem6", errors(training, l2, ct_limit, pseudo, 1, gradient)


def sampling_p_value(data: Mixture, count: int = 2000) -> float:
    """Algorithm 1 with the consistency function of the ODE against data: two-sample test.

    Smallest p-value of Kolmogorov and Smirnov's tests of the first coordinate and of the distance
    from the nearest mode, times 2 (Bonferroni).
    """

    def consistency_function(x_t: Tensor, t: Tensor) -> Tensor:
        for start, end in pairwise(karras_times(129, SIGMA_MIN, float(t[0]))):
            ends = (start.expand(count), end.expand(count))
            x_t = solvers.heun_step(data.denoised, x_t, *ends)
        return x_t

    generator = Generator().manual_seed(0)
    times = (80.0, 2.0, 0.3)
    z = normal((len(times), count, data.centers.shape[1], 1, 1), generator)
    *_, generated = samplers.multistep_stages(consistency_function, times, z, SIGMA_MIN, False)
    real = data.sample(count, generator)
    real = real + SIGMA_MIN * normal(real.shape, generator)

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        points = x[:, :, 0, 0]
        return points[:, 0], torch.cdist(points, data.centers).amin(1)

    pairs = zip(statistics(generated), statistics(real), strict=True)
    return min(1.0, 2 * min(float(stats.ks_2samp(a, b).pvalue) for a, b in pairs))


def boundary_error(data: Mixture) -> float:
    """Max |f(x, sigma_min) - x| with the paper's c_skip and c_out."""
    x = data.sample(256, Generator().manual_seed(0))
    f = SmoothFunction(data.centers.shape[1])
    difference = f(x, torch.full((len(x),), SIGMA_MIN, dtype=x.dtype)) - x
    return difference.abs().max().item()


def slope_check(id: str, data: str, errors: Errors) -> TheoremCheck:
    """Order in 1 / (N - 1): minus the slope of log errors, mean over replicates, 95 % interval."""
    intervals = np.subtract(NUM_SCALES[-NUM_FITTED:], 1)
    slopes = [-np.polyfit(np.log(intervals), np.log(e[-NUM_FITTED:]), 1)[0] for e in errors]
    center, error = np.mean(slopes), stats.sem(slopes)
    half = error * stats.t.ppf(0.975, len(slopes) - 1)
    return TheoremCheck(
        id=id,
        data=data,
        value=float(center),
        interval=(float(center - half), float(center + half)),
        num_scales=NUM_SCALES,
        errors=tuple(errors.mean(0).tolist()),
    )


def check_theorems() -> list[TheoremCheck]:
    """All statements on both mixtures."""
    checks = []
    for name, data in progress_bar(mixtures().items(), desc="theorems", unit="data set"):
        tables = dict(solver_errors(data)) | dict(limit_errors(data))
        tables |= {
            "theorem2/l2": distillation_minus_training(data, l2),
            "theorem2/l1": distillation_minus_training(data, l1),
            "theorem2/bound": training_loss(data),
        }
        checks += [slope_check(id, name, errors) for id, errors in tables.items()]
        values = {"boundary": boundary_error(data), "sampling": sampling_p_value(data)}
        checks += [
            TheoremCheck(id=id, data=name, value=value, interval=(value, value))
            for id, value in values.items()
        ]
    return checks


def run_theorems(out: Path) -> TheoremRun:
    """Check all statements and write results/theorems.json below `out`."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own use of torch.jit
        checks = tuple(check_theorems())
    duration_s = round(time.perf_counter() - start, 1)
    run = TheoremRun(checks=checks, provenance=provenance(), duration_s=duration_s)
    with atomic_path(out / THEOREMS) as temporary:
        temporary.write_text(to_json(run), encoding="utf-8")
    return run
