"""Progressive distillation, a baseline of Tables 1 and 2.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
https://arxiv.org/abs/2202.00512.
"""

import torch
from torch import Tensor

from cmrepro.consistency.distances import Distance
from cmrepro.consistency.losses import Labels, Model, noisy
from cmrepro.consistency.solvers import euler_step


def progressive_distillation_loss(
    student: Model,
    teacher: Model,
    x: Tensor,
    z: Tensor,
    t: Tensor,
    middle: Tensor,
    s: Tensor,
    distance: Distance,
    labels: Labels = None,
) -> Tensor:
    """One step of the student against two of the teacher (Algorithm 2 there), (B,).

    The steps are DDIM's, which on this ODE are Euler's. The goal is the clean image from which one
    step arrives where the teacher's two do. Weighted by the truncated signal-to-noise ratio
    max(1 / t^2, 1), the released code's default. Both models are denoisers D. On the teacher's
    grid of 2N + 1 points t has even indices below 2N, `middle` and s the next two.
    """
    x_t = noisy(x, z, t)
    with torch.no_grad():
        x_middle = euler_step(lambda x_t, t: teacher(x_t, t, labels), x_t, t, middle)
        x_s = euler_step(lambda x_t, t: teacher(x_t, t, labels), x_middle, middle, s)
        goal = x_t - (t / (t - s))[:, None, None, None] * (x_t - x_s)
    return (t**-2).clamp(min=1) * distance(student(x_t, t, labels), goal)


def student_steps_at(step: int, first_steps: int, steps_an_iteration: int) -> int:
    """N of the student, from `first_steps`, a power of two, halved every iteration down to 1.

    The students of 2 steps and of 1 step take twice as long as the others (Section 4 there), as in
    the released code (first_steps = 4,096, steps_an_iteration = 50,000 training steps).
    """
    long_iterations_begin = (first_steps.bit_length() - 2) * steps_an_iteration
    if step < long_iterations_begin:
        return first_steps >> step // steps_an_iteration
    return 2 if step < long_iterations_begin + 2 * steps_an_iteration else 1
