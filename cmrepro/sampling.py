"""From a checkpoint and a seed to images: image i depends on (seed, i) alone."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cmrepro.consistency.parameterization import Denoiser, PreconditionedModel
from cmrepro.consistency.samplers import check_times, multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step, solve_ode
from cmrepro.distributed import gather, rank_and_world_size, shard
from cmrepro.records import CheckpointInfo
from cmrepro.schema import unknown

# Images a forward pass. Part of what a seed means in the last bit: convolutions may round
# otherwise in batches of another size. The last batch is filled up, so that the count is not.
BATCH_SIZE = 100

TO_UINT8: dict[str, Callable[[Tensor], Tensor]] = {"round": torch.round, "truncate": torch.floor}


@dataclass(frozen=True)
class SamplerSettings:
    """How images are made from noise.

    Attributes:
        algorithm: "multistep" (Algorithm 1, for a consistency function) or "heun" (EDM's
            deterministic sampler, for a denoiser).
        times: The times at which the network is evaluated (multistep), or the grid (heun).
        to_uint8: How 127.5 x + 127.5 becomes a level of 0-255: "round" takes the nearest,
            "truncate" the next lower one, as the official code does.
        clip_denoised: Images of each evaluation are clipped to [-1, 1].
    """

    algorithm: str
    times: tuple[float, ...]
    to_uint8: str = "round"
    clip_denoised: bool = True

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return len(self.times) if self.algorithm == "multistep" else 2 * len(self.times) - 1

    @property
    def num_stages(self) -> int:
        """Draws of noise an image, each with images of its own: one an evaluation, or one."""
        return len(self.times) if self.algorithm == "multistep" else 1

    def first(self, steps: int) -> "SamplerSettings":
        """The sampler whose images are this one's after `steps` evaluations."""
        return replace(self, times=self.times[:steps])


def sampler_settings(
    info: CheckpointInfo, steps: int | Sequence[float], to_uint8: str = "round"
) -> SamplerSettings:
    """Settings for a checkpoint.

    Args:
        info: Of the checkpoint.
        steps: For a consistency function 1, 2, or all times of Algorithm 1, decreasing from
            sigma_max. For a denoiser the number of grid points of Heun's method.
        to_uint8: "round" or "truncate".

    Raises:
        ValueError: Steps that the model cannot take, or another rule of rounding.
    """
    if to_uint8 not in TO_UINT8:
        raise ValueError(unknown("rule to make images uint8", to_uint8, TO_UINT8))
    if info.parameterization == "edm":
        if not isinstance(steps, int):
            raise ValueError(f"got times {steps} for an EDM denoiser; give its number of steps")
        if steps < 2:
            raise ValueError(
                f"got --steps {steps} for an EDM denoiser; allowed are 2 or more points of Heun's "
                "sampler, of 2N - 1 evaluations, e.g. --steps 18"
            )
        return SamplerSettings(
            "heun", tuple(karras_times(steps, info.sigma_min, info.sigma_max).tolist()), to_uint8
        )
    if isinstance(steps, int):
        known = (
            [info.sigma_max]
            if info.two_step_time is None
            else [info.sigma_max, info.two_step_time]
        )
        if not 1 <= steps <= len(known):
            own = f"--steps t1,…,t{steps}" if steps > len(known) else "--steps t1,t2,…"
            raise ValueError(
                f"got {steps} steps; this checkpoint names times for 1 to {len(known)}; give all "
                f"times yourself for others, decreasing from {info.sigma_max:g}: {own}"
            )
        steps = known[:steps]
    check_times(steps, info.sigma_min, info.sigma_max)
    return SamplerSettings("multistep", tuple(steps), to_uint8)


def noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of images, each from its own counter-based stream.

    Args:
        seed: In [0, 2^63).
        indices: Numbers of the images, B of them.
        shape: (S, C, H, W): S draws of an image.

    Returns:
        (S, B, C, H, W) float32; image i's part is a function of (seed, i) alone.
    """
    draws = np.stack(
        [
            np.random.Generator(
                np.random.Philox(key=np.array([seed, i], np.uint64))
            ).standard_normal(shape, np.float32)
            for i in indices
        ],
        axis=1,
    )
    return torch.from_numpy(draws)


def class_labels(seed: int, indices: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Class of each image, uniform, a function of (seed, i) apart from the image's noise.

    The official code draws classes from an unseeded generator, likewise uniform.
    """
    return np.array(
        [
            np.random.Generator(
                # Noise starts at counter 0 and never gets this far.
                np.random.Philox(key=np.array([seed, i], np.uint64), counter=1 << 128)
            ).integers(num_classes)
            for i in indices
        ],
        np.int64,
    )


def to_uint8(x: Tensor, rule: str) -> NDArray[np.uint8]:
    """Images (B, 3, H, W), clipped to [-1, 1], as uint8 (B, H, W, 3) by a rule of `TO_UINT8`."""
    pixels = TO_UINT8[rule](x * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@dataclass(frozen=True)
class Samples:
    """Images of one seed after each evaluation of the sampler.

    Attributes:
        stages: One uint8 (N, H, W, 3) an evaluation of Algorithm 1; one in all for Heun.
        noise_sha256: After each evaluation likewise, the checksum of the noise used so far, image
            by image, so that fewer steps have the same one however many followed.
        labels: (N,) int64 of a class-conditional network, or None.
    """

    stages: list[NDArray[np.uint8]]
    noise_sha256: list[str]
    labels: NDArray[np.int64] | None = None


@torch.inference_mode()
def sample(
    model: PreconditionedModel,
    settings: SamplerSettings,
    num_images: int,
    seed: int,
    image_size: int,
    progress: str | None = None,
) -> Samples:
    """Sample images number 0 to num_images - 1 of a seed.

    Under `torchrun` every process samples its share of the batches, and the first gets them all.

    Args:
        model: In evaluation mode.
        settings: From `sampler_settings`.
        num_images: N >= 1.
        seed: Of noise and classes.
        image_size: H = W.
        progress: Label of the progress bar; none without one.

    Returns:
        All images in the first process, none in the others.

    Raises:
        ValueError: No image is asked for, or a negative seed.
    """
    if num_images < 1 or seed < 0:
        raise ValueError(
            f"got {num_images} images and seed {seed}; allowed are at least 1 image and seed >= 0"
        )
    device = next(model.parameters()).device
    num_classes = getattr(model.network.config, "num_classes", 0)
    multistep = settings.algorithm == "multistep"
    shape = (settings.num_stages, 3, image_size, image_size)
    rank, world = rank_and_world_size()
    firsts = range(0, num_images, BATCH_SIZE)
    own = firsts[shard(len(firsts), rank, world)]
    stages: list[list[NDArray[np.uint8]]] = [[] for _ in range(settings.num_stages)]
    digests = [hashlib.sha256() for _ in stages]

    def batch_noise(first: int) -> Tensor:
        z = noise(seed, range(first, first + BATCH_SIZE), shape)
        kept = z[:, : num_images - first].transpose(0, 1).numpy()  # (B, S, C, H, W)
        for draws, digest in enumerate(digests, 1):
            digest.update(kept[:, :draws].tobytes())
        return z.to(device)

    for first in tqdm(own, desc=progress, unit="batch", disable=progress is None or rank > 0):
        z = batch_noise(first)
        labels = None
        if num_classes:
            classes = class_labels(seed, range(first, first + BATCH_SIZE), num_classes)
            labels = torch.from_numpy(classes).to(device)
        model_of_batch = functools.partial(model, labels=labels)
        if multistep:
            images = multistep_stages(
                model_of_batch, settings.times, z, model.sigma_min, settings.clip_denoised
            )
        else:
            times = torch.tensor(settings.times, dtype=torch.float64)
            start = settings.times[0] * z[0]
            images = iter([solve_ode(_clipped(model_of_batch), start, times, heun_step)])
        for stage, x in zip(stages, images, strict=True):
            stage.append(to_uint8(x[: num_images - first], settings.to_uint8))
    if rank == 0:
        for first in firsts[len(own) :]:  # what the other processes use
            batch_noise(first)
    parts = gather([np.concatenate(stage) for stage in stages] if own else None)
    whole = [np.concatenate(stage) for stage in zip(*filter(None, parts), strict=True)]
    all_labels = class_labels(seed, range(num_images), num_classes) if num_classes else None
    return Samples(whole, [digest.hexdigest() for digest in digests], all_labels)


def _clipped(model: Denoiser) -> Denoiser:
    return lambda x_t, t: model(x_t, t).clamp(-1, 1)
