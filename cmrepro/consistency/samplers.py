"""Multistep consistency sampling (Algorithm 1); one step is its first stage."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from cmrepro.consistency.parameterization import Denoiser


def check_times(times: Sequence[float], sigma_min: float, sigma_max: float) -> None:
    """Refuse times of Algorithm 1 that are empty, not decreasing or outside the model's range."""
    decreasing = all(s < t for t, s in pairwise(times))  # False with NaN
    if not times or not decreasing or not sigma_min < times[-1] <= times[0] <= sigma_max:
        raise ValueError(
            f"got sampling times {', '.join(f'{t:g}' for t in times) or 'none'}; they must "
            f"decrease, with {sigma_min:g} < t <= {sigma_max:g}, e.g. 80, 0.8"
        )


def multistep_stages(
    f: Denoiser,
    times: Sequence[float],
    z: Tensor,
    sigma_min: float = 0.002,
    clip_denoised: bool = True,
    start: Tensor | float = 0.0,
) -> Iterator[Tensor]:
    """Algorithm 1, yielding the images after each network evaluation.

    Stage 1 is one-step generation f(t_1 z_1, t_1). Stage n adds noise of standard deviation
    sqrt(t_n^2 - sigma_min^2) to the images of stage n - 1 and applies f at t_n. The images of
    fewer steps are thus stages of those of more steps from the same noise, at no further cost.
    Editing adds its `start` (B, C, H, W) to the first noise.

    The times decrease, t_1 = sigma_max > t_2 > ... > sigma_min; z (len(times), B, C, H, W) is
    standard normal. `clip_denoised` clips the images of each stage to [-1, 1], as the released
    PyTorch code does; the paper's algorithm does not say.
    """
    x = None
    for t, noise in zip(times, z, strict=True):
        x_t = start + t * noise if x is None else x + (t**2 - sigma_min**2) ** 0.5 * noise
        x = f(x_t, x_t.new_full((len(x_t),), t))
        if clip_denoised:
            x = x.clamp(-1, 1)
        yield x
