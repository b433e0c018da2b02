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

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def teacher(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        return scale * DATA.denoise(x, time)

    loss = progressive_distillation_loss(student, teacher, x, z, t, middle, s, l2)
    assert loss.max() < 1e-24  # float64, of images of order 1
    assert not loss.requires_grad  # nothing reaches the teacher
    # The exact denoiser is another: its one step is Euler's, coarser than the two.
    f = DATA.denoise
    assert (progressive_distillation_loss(f, f, x, z, t, middle, s, l2) > 1e-8).all()


@pytest.mark.parametrize(("code", "distance"), [("jax", l1), ("jax", l2), ("torch", l2)])
def test_progressive_losses_equal_the_official_ones(code: str, distance: Distance) -> None:
    labels = None
    if code == "jax":
        stored = golden_jax.images("jcm_losses/progdist.npz")
        x, z = golden_jax.images("jcm_losses/images.npz")["x"], stored["z"]
        student, teacher = (golden_jax.model("edm", who) for who in ("student", "teacher"))
        expected = stored[f"per_sample_{distance.__name__}_truncated_snr"]
    else:
        stored = golden.arrays("cm_losses/progdist.npz")
        x, labels, z = (stored[name] for name in ("x", "y", "noise"))
        weights = golden.adm_weights("cond", "cm_losses/params_student.npz")
        student, teacher = golden.model("edm", "cond", weights), golden.model("edm", "cond")
        expected = stored["loss.l2.truncated-snr"]
    times = karras_times(2 * int(stored["num_scales"]) + 1).float()
    t, middle, s = (times[2 * stored["indices"].long() + i] for i in range(3))
    with torch.no_grad():
        loss = progressive_distillation_loss(
            student, teacher, x, z, t, middle, s, distance, labels
        )
    # Float32 through three networks.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("code", ["jax", "torch"])
def test_the_number_of_steps_is_the_official_one(code: str) -> None:
    stored = golden.arrays(f"schedules/{code}_progdist.npz")
    got = [student_steps_at(step, 4096, 50_000) for step in stored["step"].tolist()]
    assert got == stored["num_scales"].tolist()
