"""c_skip, c_out, c_in of both forms and the model that applies them."""

from collections.abc import Callable

import golden
import pytest
import torch
from random_weights import randomise
from torch import Tensor, nn

from cmrepro.consistency.parameterization import (
    Parameterization,
    PreconditionedModel,
    boundary_scalings,
    edm_scalings,
)
from cmrepro.networks.adm import UNet


class Network(nn.Module):
    """Returns its scaled input plus the noise level, and remembers both."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        self.seen = x, c_noise, labels
        return x + c_noise[:, None, None, None]


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


@pytest.mark.parametrize(
    ("parameterization", "scalings"), [("boundary", boundary_scalings), ("edm", edm_scalings)]
)
def test_the_network_sees_scaled_images_and_a_quarter_of_the_logarithm(
    parameterization: Parameterization, scalings: Callable[[Tensor], tuple[Tensor, ...]]
) -> None:
    network = Network()
    model = PreconditionedModel(network, parameterization)
    x_t, t, labels = torch.randn(3, 1, 2, 2), torch.tensor([0.01, 1.0, 80.0]), torch.arange(3)
    output = model(x_t, t, labels)
    c_skip, c_out, c_in = (c[:, None, None, None] for c in scalings(t))
    x, c_noise, seen_labels = network.seen
    assert torch.equal(x, c_in * x_t) and seen_labels is labels
    torch.testing.assert_close(c_noise, t.log() / 4)
    expected = c_skip * x_t + c_out * (c_in * x_t + c_noise[:, None, None, None])
    torch.testing.assert_close(output, expected)


def test_a_number_means_the_same_time_for_every_image() -> None:
    model, x_t = PreconditionedModel(Network(), "boundary"), torch.randn(3, 1, 2, 2)
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
    calls: list[tuple[Tensor, Tensor]] = []
    model.network.register_forward_hook(
        lambda _, arguments, output: calls.append((arguments[1], output))
    )
    with torch.no_grad():
        denoised = model(stored["x_t"], t, stored["y"])
    [(c_noise, output)] = calls
    # Logarithms in float32; that of 1 is 0.
    torch.testing.assert_close(1000 * c_noise, stored["rescaled_t"], rtol=1e-6, atol=0)
    assert golden.relative_error(output, stored[f"{name}.model_output"]) < 1e-5
    for got, expected in zip(denoised, stored[f"{name}.denoised"], strict=True):
        # float32 through some twenty layers, in another order of summation.
        assert golden.relative_error(got, expected) < 1e-5
