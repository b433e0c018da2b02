"""Zero-shot editing of images with a consistency model."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.checkpoints.load import CheckpointModel, WrappedModel
from cmrepro.consistency import editing
from cmrepro.consistency.parameterization import Denoiser
from cmrepro.consistency.schedules import karras_times
from cmrepro.metrics.extractors import check_images
from cmrepro.noise import class_labels, noise
from cmrepro.sampling import device_of, to_uint8
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
    if missing.shape != (size, size):
        raise ValueError(f"got a mask {missing.shape}; allowed is ({size}, {size}), as the images")
    device = device_of(model)
    projections = {
        "inpainting": editing.known_pixels(torch.from_numpy(missing).to(device)),
        "colorization": editing.grey_part,
        "super-resolution": editing.patch_means(patch_size),
    }
    times = karras_times(num_scales, info.sigma_min, info.sigma_max, info.rho)[:-1].tolist()
    how: dict[str, Any] = {"sigma_min": info.sigma_min}

    def consistency_function(indices: Sequence[int]) -> Denoiser:
        """F with the classes that these images have in a sample set of the seed."""
        if not model.num_classes:
            return model
        classes = torch.from_numpy(class_labels(seed, indices, model.num_classes))
        return partial(model, labels=classes.to(device))

    def edited(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Input and output of one batch."""
        f = consistency_function(indices)
        y = (torch.from_numpy(images[indices]).permute(0, 3, 1, 2) / 127.5 - 1).to(device)
        z = noise(seed, indices, (len(times), 3, size, size)).to(device)
        if task in projections:
            return projections[task](y), editing.edit(f, y, projections[task], times, z, **how)
        if task == "strokes":
            return y, editing.follow_strokes(f, y, z[: len(editing.STROKE_TIMES)], **how)
        x_t = y + sigma * z[0]
        return x_t, f(x_t, x_t.new_full((len(x_t),), sigma))

    if task == "interpolation":
        z = noise(seed, (0, 1), (1, 3, size, size))[0].to(device)
        share = torch.linspace(0, 1, len(images), device=device)
        z = editing.spherical_interpolation(z[:1], z[1:], share)
        f = consistency_function([0] * len(images))
        parts = [(z, f(info.sigma_max * z, z.new_full((len(z),), info.sigma_max)))]
    else:
        parts = [edited(i.tolist()) for i in torch.arange(len(images)).split(BATCH_SIZE)]
    inputs, outputs = (torch.cat(part) for part in zip(*parts, strict=True))
    return Edited(*(to_uint8(x.cpu(), "round").numpy() for x in (inputs, outputs)))
