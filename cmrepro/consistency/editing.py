"""Zero-shot editing (Algorithm 4, Appendix D): Algorithm 1 in which a measurement of y is kept.

The paper keeps (A y) (1 - Omega) with an orthogonal map A and a mask Omega. All that matters is
the orthogonal projection P = A^-1 (1 - Omega) A onto what is measured: line 5 of Algorithm 4 is
P y + (x - P x). Images are (B, 3, H, W) in [-1, 1].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrepro.consistency.parameterization import Denoiser
from cmrepro.consistency.samplers import multistep_stages

Projection = Callable[[Tensor], Tensor]  # linear, idempotent and symmetric
LUMA = (0.2989, 0.5870, 0.1140)  # of a grey image
STROKE_TIMES = (5.38, 2.24)


def known_pixels(missing: Tensor) -> Projection:
    """Inpainting: P x = x where `missing` (H, W) or (3, H, W) is False, else 0."""
    return lambda x: x * ~missing


def grey_part(x: Tensor) -> Tensor:
    """Colorization: P x = q (q x) in each pixel, for the unit vector q along `LUMA`."""
    q = F.normalize(x.new_tensor(LUMA), dim=0)
    return torch.einsum("c,d,bdhw->bchw", q, q, x)


def patch_means(size: int) -> Projection:
    """Super-resolution: P x is the mean of each patch of size x size, at its full resolution."""
    return lambda x: F.avg_pool2d(x, size).repeat_interleave(size, 2).repeat_interleave(size, 3)


def edit(
    f: Denoiser,
    y: Tensor,
    projection: Projection,
    times: Sequence[float],
    z: Tensor,
    sigma_min: float = 0.002,
    clip_denoised: bool = True,
) -> Tensor:
    """Algorithm 4: images that f completes and whose measurement is that of y, (B, 3, H, W).

    It starts from P y + t_1 z_1; the notebook of the official code starts from P y (deviation
    `editing-without-noise`). `times` and z (len(times), B, 3, H, W) are as in Algorithm 1.
    `clip_denoised` clips the outputs of f, as the notebook does, before the measurement is put in.
    """
    measured = projection(y)

    def constrained(x_t: Tensor, t: Tensor) -> Tensor:
        x = f(x_t, t)
        x = x.clamp(-1, 1) if clip_denoised else x
        return measured + (x - projection(x))

    *_, x = multistep_stages(constrained, times, z, sigma_min, False, start=measured)
    return x


def follow_strokes(
    f: Denoiser,
    y: Tensor,
    z: Tensor,
    times: Sequence[float] = STROKE_TIMES,
    sigma_min: float = 0.002,
    clip_denoised: bool = True,
) -> Tensor:
    """Stroke-guided generation (SDEdit): Algorithm 1 from y + t_1 z_1, with nothing kept.

    The paper takes Omega = 1 here, with which line 2 of Algorithm 4 would erase y as well
    (deviation `editing-strokes`).
    """
    *_, x = multistep_stages(f, times, z, sigma_min, clip_denoised, start=y)
    return x


def spherical_interpolation(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Noise between a and b (B, 3, H, W): sin((1 - s) psi) / sin(psi) a + sin(s psi) / sin(psi) b.

    psi is the angle between the two, `share` s (B,) in [0, 1].
    """
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1))
    psi, share = cosine.arccos()[:, None, None, None], share[:, None, None, None]
    return (((1 - share) * psi).sin() * a + (share * psi).sin() * b) / psi.sin()
