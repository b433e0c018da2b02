"""Progressive distillation: closed forms on Gaussian data, the official code."""

import golden
import golden_jax
import pytest
import torch
from gaussian import Gaussian, noise
from torch import Tensor

from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.progressive import progressive_distillation_loss, student_steps_at
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import euler_step

DATA = Gaussian(mean=0.0)


def test_the_student_of_two_euler_steps_has_no_loss() -> None:
    """Its one step is the teacher's two, at every index of the grid."""
    times, indices = karras_times(9), torch.arange(4)
    x, z = noise(4, 1, 4, 4), noise(4, 1, 4, 4, seed=1)
    seen = []

    def student(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        seen.append((x_t, t))
        x_s = x_t
        for i in range(2):
            x_s = euler_step(DATA.denoise, x_s, times[2 * indices + i], times[2 * indices + i + 1])
        # The denoised image whose slope leads from x_t to x_s.
        slope = (x_s - x_t) / (times[2 * indices + 2] - t)[:, None, None, None]
        return x_t - t[:, None, None, None] * slope

    loss = progressive_distillation_loss(student, DATA.denoise, x, z, indices, times, l2)
    assert loss.max() < 1e-24  # float64, of images of order 1
    ((x_t, t),) = seen
    assert torch.equal(t, times[[0, 2, 4, 6]])
    assert torch.equal(x_t, x + t[:, None, None, None] * z)
    # The exact denoiser is another: its one step is Euler's, coarser than the two.
    other = progressive_distillation_loss(DATA.denoise, DATA.denoise, x, z, indices, times, l2)
    assert (other > 1e-8).all()


def test_the_gradient_reaches_the_student_only() -> None:
    weights = {who: torch.tensor(0.9, requires_grad=True) for who in ("student", "teacher")}
    labels, seen = torch.arange(2), []

    def model(who: str) -> object:
        def denoiser(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(labels)
            return weights[who] * DATA.denoise(x_t, t)

        return denoiser

    x, z, indices = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1), torch.tensor([0, 1])
    loss = progressive_distillation_loss(
        model("student"), model("teacher"), x, z, indices, karras_times(5), l1, labels
    )
    loss.sum().backward()
    assert weights["student"].grad is not None and weights["teacher"].grad is None
    assert len(seen) == 3 and all(each is labels for each in seen)


@pytest.mark.parametrize("distance", [l1, l2])
def test_progressive_losses_equal_the_official_ones(distance: Distance) -> None:
    stored = golden_jax.images("jcm_losses/progdist.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    student, teacher = (golden_jax.model("edm", who) for who in ("student", "teacher"))
    times = karras_times(2 * int(stored["num_scales"]) + 1).float()
    indices = stored["indices"].long()
    with torch.no_grad():
        loss = progressive_distillation_loss(
            student, teacher, x, stored["z"], indices, times, distance
        )
    unweighted = loss / golden.WEIGHTINGS["truncated-snr"](times[2 * indices])
    # Float32 through three networks.
    for weighting, weight in golden_jax.WEIGHTINGS.items():
        got = unweighted * golden.WEIGHTINGS[weight](times[2 * indices])
        name = f"{distance.__name__}_{weighting}"
        torch.testing.assert_close(got, stored[f"per_sample_{name}"], rtol=1e-5, atol=0)
        torch.testing.assert_close(got.mean(), stored[f"loss_{name}"], rtol=1e-5, atol=0)


def test_progressive_losses_equal_those_of_the_pytorch_code() -> None:
    stored = golden.arrays("cm_losses/progdist.npz")
    x, y, z, indices = (stored[name] for name in ("x", "y", "noise", "indices"))
    student = golden.model("edm", "cond", golden.arrays("cm_losses/params_student.npz"))
    teacher = golden.model("edm", "cond")
    times = karras_times(2 * int(stored["num_scales"]) + 1).float()
    t = times[2 * indices]
    for distance, weighting in ((l2, "uniform"), (l2, "truncated-snr"), (l1, "snr+1")):
        with torch.no_grad():
            loss = progressive_distillation_loss(
                student, teacher, x, z, indices, times, distance, y
            )
        got = loss / golden.WEIGHTINGS["truncated-snr"](t) * golden.WEIGHTINGS[weighting](t)
        expected = stored[f"loss.{distance.__name__}.{weighting}"]
        # Float32 through three networks.
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_steps", [4, 8])
def test_the_grid_of_the_student_is_the_official_one(num_steps: int) -> None:
    """N steps, each from a time of the teacher's grid of 2N over its middle to the next."""
    stored, times = golden.arrays("karras/time_grids.npz"), karras_times(2 * num_steps + 1)
    for name, got in (("t", times[:-1:2]), ("tmid", times[1::2])):
        expected = stored[f"progdist_{name}_N{num_steps}"].double()
        # The official grid takes seventh powers in float32: 7 x 2 ulps of the root.
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("code", ["jax", "torch"])
def test_the_number_of_steps_is_the_official_one(code: str) -> None:
    stored = golden.arrays(f"schedules/{code}_progdist.npz")
    got = [student_steps_at(step, 4096, 50_000) for step in stored["step"].tolist()]
    assert got == stored["num_scales"].tolist()


@pytest.mark.parametrize("first", [2, 4, 1024])
def test_each_student_has_half_the_steps_and_the_last_two_twice_the_time(first: int) -> None:
    students = [student_steps_at(step, first, 3) for step in range(3 * 15)]
    durations = {n: students.count(n) for n in set(students)}
    assert students == sorted(students, reverse=True) and students[-1] == 1
    del durations[1]  # stays
    assert durations == {2**i: 3 if i > 1 else 6 for i in range(1, first.bit_length())}
