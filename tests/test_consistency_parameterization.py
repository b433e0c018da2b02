"""c_skip, c_out, c_in of both forms and the model that applies them."""

import golden
import pytest
import torch
from random_weights import randomise

from cmrepro.consistency.parameterization import (
    Parameterization,
    PreconditionedModel,
    boundary_scalings,
    edm_scalings,
)
from cmrepro.networks.adm import UNet


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_input_and_target_have_unit_variance(sigma_data: float) -> None:
    """From this Karras et al. (2022, Appendix B.6) derive the three scalings."""
    t = torch.logspace(-3, 2, 21, dtype=torch.float64)
    c_skip, c_out, c_in = edm_scalings(t, sigma_data)
    one = torch.ones_like(t)
    torch.testing.assert_close(c_in**2 * (sigma_data**2 + t**2), one)  # float64's default
    target = (1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * t**2
    # 1 - c_skip cancels where t is small: 1e-16 over t^2 = 1e-6.
    torch.testing.assert_close(target / c_out**2, one, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma_min", [0.002, 0.01])
def test_consistency_function_is_exactly_the_identity_at_sigma_min(
    sigma_min: float, dtype: torch.dtype
) -> None:
    network = randomise(UNet(golden.ADM["uncond"]))
    f = PreconditionedModel(network, "boundary", sigma_min=sigma_min)
    x_t, times = torch.randn(2, 3, 8, 8), torch.tensor([sigma_min, 1.0], dtype=dtype)
    assert torch.equal(f(x_t, times)[0], x_t[0])
    assert torch.equal(f(x_t, sigma_min), x_t)
    assert not torch.equal(PreconditionedModel(network, "edm")(x_t, sigma_min), x_t)
    t = torch.logspace(1, 2, 5, dtype=torch.float64)  # far from the boundary: EDM's
    for got, expected in zip(
        boundary_scalings(t, 0.5, sigma_min), edm_scalings(t, 0.5), strict=True
    ):
        # c_skip has (t - sigma_min)^2, c_out has t - sigma_min: 2 sigma_min / t and smaller.
        assert ((got / expected - 1).abs() <= 2.01 * sigma_min / t).all()


def test_a_number_means_the_same_time_for_every_image() -> None:
    network = randomise(UNet(golden.ADM["uncond"]))
    model, x_t = PreconditionedModel(network, "boundary"), torch.randn(3, 3, 8, 8)
    for t in (0.7, torch.tensor(0.7), torch.tensor([0.7], dtype=torch.float64)):
        assert torch.equal(model(x_t, t), model(x_t, torch.full((3,), 0.7)))
    assert model(x_t.double(), 0.7).dtype == model(x_t.bfloat16(), 0.7).dtype == torch.float32


@pytest.mark.parametrize(("parameterization", "name"), [("boundary", "distill"), ("edm", "edm")])
def test_models_equal_the_official_ones(parameterization: Parameterization, name: str) -> None:
    stored = golden.arrays("karras/denoise.npz")
    t, model = stored["sigmas"], golden.model(parameterization, "cond")
    for key, got in zip(("c_skip", "c_out", "c_in"), model.scalings(t), strict=True):
        # float32: c_skip multiplies and divides three times.
        torch.testing.assert_close(got, stored[f"{name}.{key}"], rtol=1e-6, atol=0)
    with torch.no_grad():
        denoised = model(stored["x_t"], t, stored["y"])
    for got, expected in zip(denoised, stored[f"{name}.denoised"], strict=True):
        # float32 through some twenty layers, in another order of summation.
        assert golden.relative_error(got, expected) < 1e-5
