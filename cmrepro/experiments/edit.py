"""Zero-shot editing of images with a consistency model."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.checkpoints.load import CheckpointModel, WrappedModel
from cmrepro.consistency import editing
from cmrepro.consistency.schedules import karras_times
from cmrepro.metrics.extractors import check_images
from cmrepro.noise import noise
from cmrepro.sampling import to_uint8
from cmrepro.settings import EditTask

BATCH_SIZE = 20


class Edited(NamedTuple):
    """Images before and after, uint8 (N, H, W, 3) each."""

    inputs: NDArray[np.uint8]  # what the model gets: masked, grey, of low resolution, noisy
    outputs: NDArray[np.uint8]


@torch.inference_mode()
def edit_images(
    model: CheckpointModel | WrappedModel,
    images: NDArray[np.uint8],
    task: EditTask,
    seed: int = 0,
    *,
    num_scales: int = 40,
    missing: NDArray[np.bool_] | None = None,
    patch_size: int = 4,
    sigma: float = 0.5,
) -> Edited:
    """Edit images, uint8 (N, H, W, 3) of the model's size, by Algorithm 4.

    Args:
        model: Consistency model.
        images: Originals; the task's input is made of them. For "strokes" they are the strokes.
        task: "interpolation" leads from noise 0 to noise 1 of the seed in as many
            steps as there are images, which it does not use.
        seed: Seed of the noise.
        num_scales: Points of the time grid, the last of which costs no evaluation (paper: 40).
        missing: Inpainting: True where a pixel is unknown, (H, W); by default the middle quarter.
        patch_size: Super-resolution: pixels averaged along each side.
        sigma: Denoising: standard deviation of the added noise, sigma_min < sigma <= sigma_max.

    Raises:
        ValueError: images of another size, a denoiser, or a value outside its range.
    """
    check_images(images)
    size, info = model.image_size, model.info
    if images.shape[1:] != (size, size, 3) or info.parameterization != "boundary":
        found = (
            f"got images {images.shape} and a model of parameterization {info.parameterization}"
        )
        raise ValueError(f"{found}; allowed are (N, {size}, {size}, 3) and a consistency model")
    if not info.sigma_min < sigma <= info.sigma_max or size % patch_size or num_scales < 2:
        found = f"got sigma = {sigma}, patch_size = {patch_size}, num_scales = {num_scales}"
        allowed = f"sigma up to {info.sigma_max:g}, a divisor of {size}, at least 2"
        raise ValueError(f"{found}; allowed are {allowed}")
    if missing is None:
        missing = np.zeros((size, size), bool)
        missing[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    projections = {
        "inpainting": editing.known_pixels(torch.from_numpy(missing)),
        "colorization": editing.grey_part,
        "super-resolution": editing.patch_means(patch_size),
    }
    times = karras_times(num_scales, info.sigma_min, info.sigma_max, info.rho)[:-1].tolist()
    how: dict[str, Any] = {"sigma_min": info.sigma_min}

    def edited(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Input and output of one batch; z (S, B, 3, H, W)."""
        if task in projections:
            return projections[task](y), editing.edit(model, y, projections[task], times, z, **how)
        if task == "strokes":
            return y, editing.follow_strokes(model, y, z[: len(editing.STROKE_TIMES)], **how)
        x_t = y + sigma * z[0]
        return x_t, model(x_t, sigma)

    if task == "interpolation":
        z = noise(seed, (0, 1), (1, 3, size, size))[0]
        share = torch.linspace(0, 1, len(images))
        x_t = info.sigma_max * editing.spherical_interpolation(z[:1], z[1:], share)
        parts = [(x_t / info.sigma_max, model(x_t, info.sigma_max))]
    else:
        originals = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        shape = (len(times), 3, size, size)
        indices = torch.arange(len(images)).split(BATCH_SIZE)
        parts = [edited(originals[i], noise(seed, i.tolist(), shape)) for i in indices]
    inputs, outputs = (torch.cat(part) for part in zip(*parts, strict=True))
    return Edited(*(to_uint8(x.cpu(), "round").numpy() for x in (inputs, outputs)))
