"""Images from a checkpoint and a seed, and sample sets on disk."""

import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmrepro.checkpoints.load import CheckpointModel, WrappedModel
from cmrepro.consistency.parameterization import Denoiser, PreconditionedModel
from cmrepro.consistency.samplers import check_times, multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step, solve_ode
from cmrepro.data import ImageSource
from cmrepro.distributed import gather, rank_and_world_size, shard
from cmrepro.files import array_sha256, atomic_path, short
from cmrepro.networks.presets import CLIPPED_DENOISERS
from cmrepro.progress import progress_bar
from cmrepro.records import CheckpointInfo, Hashes, SampleProvenance
from cmrepro.schema import LARGEST, convert, read_json, to_json
from cmrepro.settings import Rounding, SamplerSettings

# Images of one forward pass. Convolutions may round differently in batches of another size, so it
# is part of what a seed means; the last batch is filled up, so that the number of images is not.
BATCH_SIZE = 100

TO_UINT8 = {"round": torch.round, "truncate": torch.floor}


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
    if clip_denoised is None:
        clip_denoised = info.parameterization == "boundary" or info.network in CLIPPED_DENOISERS
    rounding: Rounding = "round" if to_uint8 == "as given" else to_uint8
    how: dict[str, Any] = {"to_uint8": rounding, "clip_denoised": clip_denoised}
    sigma_max = info.sigma_max
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


def _generator(seed: int, i: int, counter: int = 0) -> np.random.Generator:
    """Counter-based stream of image i."""
    key = np.array([seed, i], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (S, B, C, H, W), float32, of B images by their indices.

    `shape` is (S, C, H, W): S draws of an image, which are a function of (seed, i) alone.
    """
    draws = [_generator(seed, i).standard_normal(shape, np.float32) for i in indices]
    return torch.from_numpy(np.stack(draws, axis=1))


def class_labels(seed: int, indices: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Class of each image (N,), uniform as in the official code, a function of (seed, i) alone."""
    counter = 1 << 128  # independent of the noise, whose counters never get this far
    return np.array([_generator(seed, i, counter).integers(num_classes) for i in indices])


def to_uint8(x: Tensor, rule: Rounding) -> NDArray[np.uint8]:
    """Images (B, 3, H, W), clipped to [-1, 1], as uint8 (B, H, W, 3) by a rule of `TO_UINT8`."""
    pixels = TO_UINT8[rule](x * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@dataclass(frozen=True)
class Samples:
    """Images of one seed after each evaluation of Algorithm 1, or at the end of Heun's method."""

    stages: list[NDArray[np.uint8]]  # (N, H, W, 3) each
    # Checksum of the noise up to each stage, image by image: the same for any number of later ones
    noise_sha256: list[str]
    labels: NDArray[np.int64] | None  # (N,) of a class-conditional network, or None


@torch.inference_mode()
def sample(
    model: PreconditionedModel | WrappedModel,
    settings: SamplerSettings,
    num_images: int,
    seed: int,
    image_size: int,
    progress: str | None = None,
) -> Samples:
    """Sample images number 0 to num_images - 1 of a seed with f or D, in evaluation mode.

    Under `torchrun` every process samples its shard of the batches, and rank 0 gathers them; the
    others return no images. `progress` is the label of a progress bar.
    """
    if not (1 <= num_images <= LARGEST and 0 <= seed <= LARGEST):
        found = f"got {num_images} images and seed {seed}"
        raise ValueError(f"{found}; allowed is at least 1 image and seed >= 0, both below 2^63")
    device = _device(model)
    rank, world_size = rank_and_world_size()
    firsts = range(0, num_images, BATCH_SIZE)
    classes = None
    if model.num_classes:
        indices = range(len(firsts) * BATCH_SIZE)
        classes = torch.from_numpy(class_labels(seed, indices, model.num_classes))
    own = firsts[shard(len(firsts), rank, world_size)]
    # Noise draws an image: one for each evaluation of Algorithm 1, one in all for Heun.
    num_stages = len(settings.times) if settings.algorithm == "multistep" else 1
    stages: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_stages)]
    digests = [hashlib.sha256() for _ in stages]
    shape = (len(stages), 3, image_size, image_size)

    def batch_noise(first: int) -> Tensor:
        z = noise(seed, range(first, first + BATCH_SIZE), shape)
        used = z[:, : num_images - first].transpose(0, 1).numpy()  # (B, S, C, H, W)
        for draws, digest in enumerate(digests, 1):
            digest.update(used[:, :draws].tobytes())
        return z.to(device)

    hidden = progress is None or rank > 0
    for first in progress_bar(own, hidden, desc=progress, unit="batch"):
        z = batch_noise(first)
        labels = None if classes is None else classes[first : first + BATCH_SIZE].to(device)
        images = _stages(functools.partial(model, labels=labels), settings, z, model.sigma_min)
        for stage, x in zip(stages, images, strict=True):
            stage.append(to_uint8(x[: num_images - first], settings.to_uint8))
    if rank == 0:
        for first in firsts[len(own) :]:  # the checksum covers the noise of the other ranks
            batch_noise(first)
    parts = gather([np.concatenate(stage) for stage in stages] if own else None)
    whole = [np.concatenate(stage) for stage in zip(*filter(None, parts), strict=True)]
    used = None if classes is None else classes[:num_images].numpy()
    return Samples(whole, [digest.hexdigest() for digest in digests], used)


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
    return iter([solve_ode(denoiser, settings.times[0] * z[0], times, heun_step)])


def _device(model: nn.Module) -> torch.device:
    """Device of a model's parameters, the CPU without any."""
    return next(model.parameters(), torch.empty(0)).device


def sample_provenance(
    model: CheckpointModel | WrappedModel,
    settings: SamplerSettings,
    seed: int,
    samples: Samples,
    stage: int = 0,
) -> SampleProvenance:
    """Provenance of the images of one stage of `samples`, counted from 1; the last by default."""
    stage = stage or len(samples.stages)
    if settings.algorithm == "multistep":
        settings = settings.replace(times=settings.times[:stage])
    images, labels = samples.stages[stage - 1], samples.labels
    hashes = Hashes(
        noise=samples.noise_sha256[stage - 1],
        labels=None if labels is None else array_sha256(labels),
        images=array_sha256(images),
    )
    return model.provenance.replace(
        nfe=settings.nfe,
        seed=seed,
        sampler=settings,
        num_sampled=len(images),
        sampling_device=str(_device(model)),
        hashes=hashes,
    )


def provenance_path(path: Path) -> Path:
    """Path of the JSON beside a sample set."""
    path = Path(os.path.expanduser(path)).absolute()  # so that the folder "." has a name
    return path.with_name(f"{path.name}.provenance.json")


def write_sample_set(
    path: Path,
    images: NDArray[np.uint8],
    provenance: SampleProvenance,
    labels: NDArray[np.int64] | None = None,
) -> None:
    """Write images as `arr_0` of an .npz, classes as `arr_1` (ADM's names), provenance beside."""
    with atomic_path(path) as temporary:  # it ends in .npz too, as np.savez wants it
        np.savez(temporary, images) if labels is None else np.savez(temporary, images, labels)
    with atomic_path(provenance_path(path)) as temporary:
        temporary.write_text(to_json(provenance), encoding="utf-8")


def read_provenance(path: Path, images: ImageSource) -> SampleProvenance:
    """Provenance beside a sample set; without one, only the set's name."""
    unknown = SampleProvenance(model=short(images.name, 100))
    if not (beside := provenance_path(path)).is_file():
        return unknown
    fields = read_json(object, beside)
    if not (isinstance(fields, dict) and fields.keys() & SampleProvenance.__struct_fields__):
        print(f"{short(beside, 120)} is no provenance of cmrepro's; ignored", file=sys.stderr)
        return unknown
    provenance = convert(SampleProvenance, fields, str(beside))
    if provenance.num_sampled not in (None, images.num_images):
        counts = f"{provenance.num_sampled} images, {path} has {images.num_images}"
        raise ValueError(f"{beside} is the provenance of {counts}; remove it or sample again")
    return provenance
