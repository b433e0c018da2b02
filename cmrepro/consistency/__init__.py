"""The method of "Consistency Models" (Song et al. 2023) as functions of tensors.

Notation, once for the package: `x` a clean image in [-1, 1], `z` standard normal noise,
`x_t = x + t z` the noisy image, `t` the noise level (standard deviation and time in one),
`s < t` its neighbour on the time grid, `D(x_t, t)` the denoiser (EDM), `f(x_t, t)` the consistency
function, `labels` (B,) int64 for class-conditional models. Images are (B, C, H, W), times (B,).

Direction of the time grid: index 0 is sigma_max (T = 80) and index N - 1 is sigma_min
(the paper's epsilon = 0.002), as in the released code. The paper counts the same points upward.
N counts points, so that there are N - 1 intervals.
"""
