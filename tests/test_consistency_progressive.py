"""Progressive distillation: closed forms on Gaussian data, the official code."""

import golden_jax
import pytest
import torch
from gaussian import Gaussian, noise
from torch import Tensor

from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.progressive import progressive_distillation_loss
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
    snr = times[2 * indices] ** -2
    # Float32 through three networks.
    for weighting, weight in [
        ("truncated_snr", snr.clamp(min=1)),
        ("snr", snr),
        ("snrp1", snr + 1),
    ]:
        got, name = loss / snr.clamp(min=1) * weight, f"{distance.__name__}_{weighting}"
        torch.testing.assert_close(got, stored[f"per_sample_{name}"], rtol=1e-5, atol=0)
        torch.testing.assert_close(got.mean(), stored[f"loss_{name}"], rtol=1e-5, atol=0)
