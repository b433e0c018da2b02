"""Images from a checkpoint and a seed."""

import functools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrepro.checkpoints.load import WrappedModel
from cmrepro.consistency.parameterization import Denoiser, PreconditionedModel
from cmrepro.consistency.samplers import check_times, multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import euler_step, heun_step, solve_ode
from cmrepro.distributed import (
    all_reduce_max,
    broadcast,
    rank_and_world_size,
    shard,
    thread_pool,
)
from cmrepro.files import items_sha256
from cmrepro.networks.presets import CLIPPED_DENOISERS
from cmrepro.noise import class_labels, noise_blocks
from cmrepro.progress import progress_bar
from cmrepro.records import CheckpointInfo, Hashes, SampleProvenance
from cmrepro.sample_sets import Stages, prepare_folder, write_provenance
from cmrepro.schema import LARGEST
from cmrepro.settings import Rounding, SamplerSettings

# Images of a forward pass, on the CPU. Convolutions may round differently in batches of another
# size: those of the demo network did in batches of 16 and less, not in those of 30 to 130. So the
# last batch, or the only one, is filled up to a multiple of FULL.
BATCH_SIZE, FULL = 100, 32
LARGEST_BATCH_SIZE = 512  # on "cuda"; larger ones are no faster, and processes share them worse
BYTES_PER_PIXEL = 8500  # of the largest released network in float32: 56 GB for 100 LSUN images

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# In place, on the scaled copy of the images
TO_UINT8 = {"round": torch.round_, "truncate": torch.floor_}


def sampler_settings(
    info: CheckpointInfo,
    steps: int | Sequence[float],
    to_uint8: Literal[Rounding, "as given"] = "round",
    clip_denoised: bool | None = None,
) -> SamplerSettings:
    """Sampler of a checkpoint; "as given", of protocols that read images, is "round".

    `steps` of a consistency function are 1, 2, or all times of Algorithm 1, decreasing from
    sigma_max; those of a denoiser are the number of grid points of Heun's method. `clip_denoised`
    is by default that of the official sampler: False for EDM on CIFAR-10 and the demo.
    """
    is_pd = info.recipe is not None and info.recipe.method == "pd"
    if clip_denoised is None:
        is_consistency_function = info.parameterization == "boundary"
        clip_denoised = is_consistency_function or is_pd or info.network in CLIPPED_DENOISERS
    rounding: Rounding = "round" if to_uint8 == "as given" else to_uint8
    how: dict[str, Any] = {"to_uint8": rounding, "clip_denoised": clip_denoised}
    sigma_max = info.sigma_max
    if info.recipe and is_pd:
        trained = info.recipe.num_scales
        if steps != trained:
            found = f"got steps = {steps} for a student of progressive distillation"
            raise ValueError(f"{found}; allowed are the {trained} that it was trained for")
        grid = tuple(karras_times(trained + 1, info.sigma_min, sigma_max, info.rho).tolist())
        return SamplerSettings(algorithm="euler", times=grid, **how)
    if info.parameterization == "edm":
        if not isinstance(steps, int) or steps < 2:
            allowed = "a number N >= 2 of points of Heun's sampler, e.g. 18"
            raise ValueError(f"got steps = {steps} for an EDM denoiser; allowed is {allowed}")
        grid = tuple(karras_times(steps, info.sigma_min, sigma_max, info.rho).tolist())
        return SamplerSettings(algorithm="heun", times=grid, **how)
    if isinstance(steps, int):
        known = [sigma_max, *([info.two_step_time] if info.two_step_time else [])]
        if not 1 <= steps <= len(known):
            found = f"got steps = {steps}; this model has times for 1 to {len(known)}"
            raise ValueError(f"{found}; list all times for more: {sigma_max:g}, t2, …")
        steps = known[:steps]
    check_times(steps, info.sigma_min, sigma_max)
    times = tuple(map(float, steps))
    return SamplerSettings(algorithm="multistep", times=times, **how)


def to_uint8(x: Tensor, rule: Rounding) -> Tensor:
    """Images (B, 3, H, W), clipped to [-1, 1], as uint8 (B, H, W, 3) by a rule of `TO_UINT8`."""
    pixels = TO_UINT8[rule]((x * 127.5).add_(127.5)).clamp_(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Samples:
    """Images of one seed after each evaluation of Algorithm 1, or at the end of Heun's method."""

    stages: list[NDArray[np.uint8]]  # (N, H, W, 3) each; memory maps of the files in a folder
    labels: NDArray[np.int64] | None  # (N,) of a class-conditional network, or None
    provenances: list[SampleProvenance]  # of each stage; later ones do not change the noise's hash


@torch.inference_mode()
def sample(
    model: PreconditionedModel | WrappedModel,
    settings: SamplerSettings,
    num_images: int,
    seed: int,
    image_size: int,
    progress: str | None = None,
    folder: Path | None = None,
    batch_size: int | None = None,
) -> Samples:
    """Sample images number 0 to num_images - 1 of a seed with f or D, in evaluation mode.

    With a `folder`, which all processes of `torchrun` see, each writes its shard of the batches to
    folder/stageK.npy as they are made, their provenance beside them, and an interrupted sampling
    continues. Without one, each process samples all images. `batch_size` is by default
    `BATCH_SIZE`, on "cuda" by its memory. `progress` is the label of a progress bar.
    """
    if not (1 <= num_images <= LARGEST and 0 <= seed <= LARGEST):
        found = f"got {num_images} images and seed {seed}"
        raise ValueError(f"{found}; allowed is at least 1 image and seed >= 0, both below 2^63")
    shape = (len(settings.stages), num_images, image_size, image_size, 3)
    size = batch_size or _default_batch_size(device_of(model), image_size)
    unnamed = SampleProvenance(model=type(model).__name__)
    run = getattr(model, "provenance", unnamed).replace(
        nfe=settings.nfe,
        seed=seed,
        sampler=settings,
        num_sampled=num_images,
        sampling_device=str(device_of(model)),
        sampling_batch_size=size,
    )
    rank, world_size = rank_and_world_size() if folder else (0, 1)
    if folder:
        if rank == 0:
            size = prepare_folder(folder, run, shape, batch_size is None)
        size = broadcast(size)
    stages = Stages(shape, folder)
    firsts = range(0, num_images, size)
    firsts = firsts[shard(len(firsts), rank, world_size)]
    num_classes = model.num_classes
    labels = class_labels(seed, range(num_images), num_classes) if num_classes else None
    size = _sample_batches(model, settings, seed, firsts, labels, stages, progress)
    if folder:  # when all processes have written theirs
        size = -all_reduce_max(-size)
    labels_sha256 = None if labels is None else items_sha256(labels)
    provenances = [
        run.replace(
            nfe=sampler.nfe,
            sampler=sampler,
            sampling_batch_size=size,
            hashes=Hashes(noise=noise_sha256, labels=labels_sha256, images=images_sha256),
        )
        for sampler, (noise_sha256, images_sha256) in zip(
            settings.stages, stages.checksums(), strict=True
        )
    ]
    if rank == 0:
        for path, provenance in zip(stages.paths, provenances, strict=False):
            write_provenance(path, provenance)
    return Samples(stages.images, labels, provenances)


def _sample_batches(
    model: PreconditionedModel | WrappedModel,
    settings: SamplerSettings,
    seed: int,
    firsts: range,
    labels: NDArray[np.int64] | None,
    stages: Stages,
    progress: str | None,
) -> int:
    """Sample the unfinished ones of the batches that start at `firsts`; the batch size at the end.

    The device does not wait for the noise of a batch, nor for its images to be hashed and written.
    Where its memory is too small for a batch, the batch size is halved.
    """
    device, (pool, _), size = device_of(model), thread_pool(), firsts.step
    num_images, *image_shape, _ = stages.images[0].shape
    left = [first for first in firsts if not stages.is_finished(first, first + size)]
    filled = ((first, -(-(num_images - first) // FULL) * FULL) for first in left)
    batches = [range(first, first + min(size, count)) for first, count in filled]
    shape = (len(stages.images), 3, *image_shape)
    noise = noise_blocks(seed, batches, shape, device.type == "cuda")

    def write(first: int, images: list[Tensor], noise_digests: bytes) -> None:
        used = [x[: num_images - first].cpu().numpy() for x in images]
        stages.write(first, used, noise_digests)

    writes = deque[Future[None]]()
    hidden, skipped = progress is None or rank_and_world_size()[0] > 0, len(firsts) - len(left)
    counts = {"total": len(firsts), "initial": skipped, "unit": "batch"}
    try:
        with progress_bar(None, hidden, desc=progress, **counts) as bar:
            for batch, (z, noise_digests) in zip(batches, noise, strict=True):
                classes = None
                if labels is not None:
                    classes = torch.from_numpy(
                        np.resize(labels[batch.start : batch.stop], len(batch))
                    )
                while (passes := _passes(model, settings, z, classes, size)) is None:
                    found = f"out of memory with {size} images at once"
                    size //= 2
                    print(f"{found}; continuing with {size} (--batch-size)", file=sys.stderr)
                images = [torch.cat(stage) for stage in zip(*passes, strict=True)]
                writes.append(pool.submit(write, batch.start, images, noise_digests))
                if len(writes) > 2:
                    writes.popleft().result()
                bar.update()
    finally:  # an interruption loses no images that were made
        for future in writes:
            future.result()
    return size


def _passes(
    model: PreconditionedModel | WrappedModel,
    settings: SamplerSettings,
    z: Tensor,
    labels: Tensor | None,
    size: int,
) -> list[list[Tensor]] | None:
    """Images of each stage, uint8 (B, H, W, 3), of each `size` of the noise z (B, S, C, H, W).

    None if the device's memory is too small.
    """
    device, passes = device_of(model), []
    try:
        for part, x in enumerate(z.split(size)):
            classes = None if labels is None else labels.split(size)[part].to(device)
            f = functools.partial(model, labels=classes)
            x = x.to(device, non_blocking=True).transpose(0, 1)
            precision = settings.precision
            with torch.autocast(device.type, AUTOCAST[precision], precision != "fp32"):
                images = _stages(f, settings, x, model.sigma_min)
                passes.append([to_uint8(x, settings.to_uint8) for x in images])
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        return None
    return passes


def _stages(
    model: Denoiser, settings: SamplerSettings, z: Tensor, sigma_min: float
) -> Iterator[Tensor]:
    """Images after each evaluation of Algorithm 1, or the images of Heun's method."""
    clip = settings.clip_denoised
    if settings.algorithm == "multistep":
        return multistep_stages(model, settings.times, z, sigma_min, clip)

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        return model(x_t, t).clamp(-1, 1) if clip else model(x_t, t)

    times = torch.tensor(settings.times, dtype=torch.float64)
    x = settings.times[0] * z[0]
    if settings.algorithm == "euler":
        return iter([solve_ode(denoiser, x, times, euler_step, to_zero=False)])
    return iter([solve_ode(denoiser, x, times, heun_step)])


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's parameters, the CPU without any."""
    return next(model.parameters(), torch.empty(0)).device


def _default_batch_size(device: torch.device, image_size: int) -> int:
    """Images of a forward pass: on "cuda" a power of 2 that fills at most half of its memory."""
    if device.type != "cuda":
        return BATCH_SIZE
    memory = torch.cuda.get_device_properties(device).total_memory
    fitting = memory // (2 * BYTES_PER_PIXEL * image_size**2)
    return min(LARGEST_BATCH_SIZE, 1 << max(fitting.bit_length() - 1, 0))
