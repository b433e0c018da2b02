"""Quick looks at a run: a grid of its samples and a score of too few of them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmrepro.consistency.samplers import multistep_stages
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step, solve_ode
from cmrepro.data import TrainingImages
from cmrepro.metrics.definitions import frechet_distance
from cmrepro.metrics.extractors import load_extractor
from cmrepro.metrics.features import extract
from cmrepro.metrics.protocols import load_protocol
from cmrepro.training.step import Training

NUM_SAMPLES = 240  # a multiple of a grid's 60
NUM_REAL = 2000
HEUN_POINTS = 10  # half of EDM's 18: a look, not a result


@torch.no_grad()
def draw_samples(training: Training, image_size: int) -> NDArray[np.uint8]:
    """Images of the averaged weights, always from the same noise.

    One step of a consistency function, Heun's method for a denoiser.

    Args:
        training: The run.
        image_size: H = W.

    Returns:
        uint8 (`NUM_SAMPLES`, H, W, 3).
    """
    recipe, ema = training.recipe, training.ema
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(NUM_SAMPLES, 3, image_size, image_size, generator=generator)
    classes = getattr(ema.network.config, "num_classes", 0)
    labels = torch.arange(NUM_SAMPLES) % classes if classes else None
    pixels = []
    for first in range(0, NUM_SAMPLES, training.micro_batch):
        rows = slice(first, first + training.micro_batch)
        noise = z[rows].to(training.device)
        part_labels = None if labels is None else labels[rows].to(training.device)

        def model(x_t: Tensor, t: Tensor, labels: Tensor | None = part_labels) -> Tensor:
            return ema(x_t, t, labels).clamp(-1, 1)

        if recipe.method == "edm":
            times = karras_times(HEUN_POINTS, recipe.sigma_min, recipe.sigma_max, recipe.rho)
            x = solve_ode(model, recipe.sigma_max * noise, times, heun_step)
        else:
            (x,) = multistep_stages(model, [recipe.sigma_max], noise[None], recipe.sigma_min)
        pixels.append((x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(pixels).permute(0, 2, 3, 1).contiguous().numpy()


class QuickScore:
    """Fréchet distance between a run's samples and its data in the `embedded` protocol's features.

    Far too few samples for a record, and biased upwards by that; it shows whether a run improves.

    Args:
        dataset: The training images; `NUM_REAL` of them, evenly spread, are compared with.
        device: Where the extractor runs.
    """

    def __init__(self, dataset: TrainingImages, device: torch.device) -> None:
        self.extractor = load_extractor(load_protocol("embedded").extractor, str(device))
        count = min(NUM_REAL, dataset.num_images)
        numbers = np.linspace(0, dataset.num_images - 1, count).round().astype(np.int64)
        self.real = self._moments(dataset.take(numbers))

    def __call__(self, images: NDArray[np.uint8]) -> float:
        """The distance of images (N, H, W, 3) from the data."""
        return frechet_distance(*self._moments(images), *self.real)

    def _moments(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        features = extract(images, self.extractor).features
        return features.mean(0, dtype=np.float64), np.cov(features, rowvar=False, dtype=np.float64)
