"""Progressive distillation: closed forms on Gaussian data, the official codes."""

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
    times = karras_times(9)
    t, middle, s = times[:-1:2], times[1::2], times[2::2]
    x, z = noise(4, 1, 4, 4), noise(4, 1, 4, 4, seed=1)
    x_t = x + t[:, None, None, None] * z

    def student(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        assert torch.equal(x, x_t) and torch.equal(time, t)
        x_s = euler_step(DATA.denoise, euler_step(DATA.denoise, x, t, middle), middle, s)
        # The denoised image whose slope leads from x_t to x_s.
        return x - (t / (s - t))[:, None, None, None] * (x_s - x)

    loss = progressive_distillation_loss(student, DATA.denoise, x, z, t, middle, s, l2)
    assert loss.max() < 1e-24  # float64, of images of order 1
    # The exact denoiser is another: its one step is Euler's, coarser than the two.
    f = DATA.denoise
    assert (progressive_distillation_loss(f, f, x, z, t, middle, s, l2) > 1e-8).all()


def test_the_gradient_reaches_the_student_only() -> None:
    weights = {who: torch.tensor(0.9, requires_grad=True) for who in ("student", "teacher")}
    labels, seen = torch.arange(2), []

    def model(who: str) -> object:
        def denoiser(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(labels)
            return weights[who] * DATA.denoise(x_t, t)

        return denoiser

    x, z, times = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1), karras_times(5)
    grid = times[:-1:2], times[1::2], times[2::2]
    progressive_distillation_loss(
        model("student"), model("teacher"), x, z, *grid, l1, labels
    ).sum().backward()
    assert weights["student"].grad is not None and weights["teacher"].grad is None
    assert len(seen) == 3 and all(each is labels for each in seen)


@pytest.mark.parametrize("distance", [l1, l2])
@pytest.mark.parametrize("code", ["jax", "torch"])
def test_progressive_losses_equal_the_official_ones(code: str, distance: Distance) -> None:
    labels = None
    if code == "jax":
        stored = golden_jax.images("jcm_losses/progdist.npz")
        x, z = golden_jax.images("jcm_losses/images.npz")["x"], stored["z"]
        student, teacher = (golden_jax.model("edm", who) for who in ("student", "teacher"))
        names = {
            f"per_sample_{distance.__name__}_{key}": value
            for key, value in golden_jax.WEIGHTINGS.items()
        }
    else:
        stored = golden.arrays("cm_losses/progdist.npz")
        x, labels, z = (stored[name] for name in ("x", "y", "noise"))
        weights = golden.adm_weights("cond", "cm_losses/params_student.npz")
        student, teacher = golden.model("edm", "cond", weights), golden.model("edm", "cond")
        weightings = ("snr+1",) if distance is l1 else ("uniform", "truncated-snr")
        names = {f"loss.{distance.__name__}.{key}": key for key in weightings}
    times = karras_times(2 * int(stored["num_scales"]) + 1).float()
    t, middle, s = (times[2 * stored["indices"].long() + i] for i in range(3))
    with torch.no_grad():
        loss = progressive_distillation_loss(
            student, teacher, x, z, t, middle, s, distance, labels
        )
    unweighted = loss / golden.WEIGHTINGS["truncated-snr"](t)
    for name, weighting in names.items():
        got = unweighted * golden.WEIGHTINGS[weighting](t)
        # Float32 through three networks.
        torch.testing.assert_close(got, stored[name], rtol=1e-5, atol=0)


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
    durations = {n: students.count(n) for n in set(students) - {1}}  # 1 has no end
    assert students == sorted(students, reverse=True) and students[-1] == 1
    assert durations == {2**i: 3 if i > 1 else 6 for i in range(1, first.bit_length())}
