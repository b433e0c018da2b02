"""From a checkpoint and a seed to images: image i depends on (seed, i) alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cmrepro.checkpoints.io import CheckpointInfo
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.consistency.samplers import check_times, multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step, solve_ode

# Images a forward pass. Part of what a seed means in the last bit: convolutions may round
# otherwise in batches of another size. The last batch is filled up, so that the count is not.
BATCH_SIZE = 100


@dataclass(frozen=True)
class SamplerSettings:
    """How images are made from noise.

    Attributes:
        algorithm: "multistep" (Algorithm 1, for a consistency function) or "heun" (EDM's
            deterministic sampler, for a denoiser).
        times: The times at which the network is evaluated (multistep), or the grid (heun).
        to_uint8: "round": 127.5 x + 127.5 to the nearest of 0-255. The official code truncates.
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

    def first(self, steps: int) -> "SamplerSettings":
        """The sampler whose images are this one's after `steps` evaluations."""
        return SamplerSettings(self.algorithm, self.times[:steps])


def sampler_settings(info: CheckpointInfo, steps: int | Sequence[float]) -> SamplerSettings:
    """Settings for a checkpoint.

    Args:
        info: Of the checkpoint.
        steps: For a consistency function 1, 2, or all times of Algorithm 1, decreasing from
            sigma_max. For a denoiser the number of grid points of Heun's method.

    Raises:
        ValueError: Steps that the model cannot take.
    """
    if info.parameterization == "edm":
        if not isinstance(steps, int):
            raise ValueError(f"got times {steps} for an EDM denoiser; give its number of steps")
        return SamplerSettings(
            "heun", tuple(karras_times(steps, info.sigma_min, info.sigma_max).tolist())
        )
    if isinstance(steps, int):
        known = (
            [info.sigma_max]
            if info.two_step_time is None
            else [info.sigma_max, info.two_step_time]
        )
        if not 1 <= steps <= len(known):
            raise ValueError(
                f"got {steps} steps; this checkpoint names times for 1 to {len(known)}; give all "
                "times instead, e.g. --steps 80,0.8"
            )
        steps = known[:steps]
    check_times(steps, info.sigma_min, info.sigma_max)
    return SamplerSettings("multistep", tuple(steps))


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


def to_uint8(x: Tensor) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) in [-1, 1], clipped and rounded to uint8 (B, H, W, 3)."""
    pixels = (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@dataclass(frozen=True)
class Samples:
    """Images of one seed after each evaluation of the sampler.

    Attributes:
        stages: One uint8 (N, H, W, 3) an evaluation of Algorithm 1; one in all for Heun.
        noise_sha256: Checksum of the noise of all stages, image by image.
    """

    stages: list[NDArray[np.uint8]]
    noise_sha256: str


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

    Args:
        model: In evaluation mode.
        settings: From `sampler_settings`.
        num_images: N >= 1.
        seed: Of the noise.
        image_size: H = W.
        progress: Label of the progress bar; none without one.

    Raises:
        ValueError: No image is asked for, or a negative seed.
    """
    if num_images < 1 or seed < 0:
        raise ValueError(
            f"got {num_images} images and seed {seed}; allowed are at least 1 image and seed >= 0"
        )
    device = next(model.parameters()).device
    multistep = settings.algorithm == "multistep"
    num_stages = len(settings.times) if multistep else 1
    stages: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_stages)]
    digest = hashlib.sha256()
    for first in tqdm(
        range(0, num_images, BATCH_SIZE), desc=progress, unit="batch", disable=progress is None
    ):
        z = noise(seed, range(first, first + BATCH_SIZE), (num_stages, 3, image_size, image_size))
        kept = min(BATCH_SIZE, num_images - first)
        digest.update(z[:, :kept].transpose(0, 1).contiguous().numpy().tobytes())
        z = z.to(device)
        if multistep:
            images = multistep_stages(
                model, settings.times, z, model.sigma_min, settings.clip_denoised
            )
        else:
            times = torch.tensor(settings.times, dtype=torch.float64)
            images = iter([solve_ode(_clipped(model), settings.times[0] * z[0], times, heun_step)])
        for stage, x in zip(stages, images, strict=True):
            stage.append(to_uint8(x[:kept]))
    return Samples([np.concatenate(stage) for stage in stages], digest.hexdigest())


def _clipped(model: PreconditionedModel) -> Any:
    return lambda x_t, t: model(x_t, t).clamp(-1, 1)
