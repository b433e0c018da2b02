"""Losses of CD, CT and EDM equal those of the official JAX code."""

import golden
import golden_jax
import pytest
import torch
from torch import Tensor

from cmrepro.checkpoints.flax import AXES, flax_names
from cmrepro.consistency.distances import Distance, l1, l2
from cmrepro.consistency.losses import (
    consistency_distillation_loss,
    consistency_training_loss,
    edm_loss,
)
from cmrepro.consistency.schedules import karras_times
from cmrepro.consistency.solvers import heun_step


def linf(x: Tensor, y: Tensor) -> Tensor:
    """The third distance of the official code, which no released model is trained with."""
    return (x - y).abs().flatten(1).amax(1)


CASES = ["cd_heun", "cd_heun_stopgrad_self", "ct_euler_N2", "ct_euler_N7", "ct_euler_N33"]


@pytest.mark.parametrize("distance", [l2, l1, linf])
@pytest.mark.parametrize("case", CASES)
def test_consistency_losses_equal_the_official_ones(case: str, distance: Distance) -> None:
    stored = golden_jax.images(f"jcm_losses/{case}.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    online = golden_jax.model("boundary", "student")
    target = online if case.endswith("self") else golden_jax.model("boundary", "target")
    inputs: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    for model in {online, target}:
        model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
        model.register_forward_hook(lambda _, arguments, output: outputs.append(output))
    grid = karras_times(int(stored["num_scales"])).float()
    t, s = stored["t"], stored["t2"]
    # The official grid is a power in float32, the seventh of numbers rounded to 6e-8.
    torch.testing.assert_close(grid[stored["indices"].long()], t, rtol=2e-6, atol=0)
    torch.testing.assert_close(grid[stored["indices"].long() + 1], s, rtol=2e-6, atol=0)
    indices, times = golden_jax.pairs(t, s)
    if case.startswith("cd"):
        teacher = golden_jax.model("edm", "teacher")
        loss = consistency_distillation_loss(
            online, target, teacher, x, stored["z"], indices, times, heun_step, distance
        )
    else:
        loss = consistency_training_loss(online, target, x, stored["z"], indices, times, distance)
    # The official CT reaches x_t2 by a step from x_t, whose float32 digits up to 300 cancel.
    assert (inputs[-1][0] - stored["x_t2"]).abs().max() < 1e-6 * (x + 80 * stored["z"]).abs().max()
    for got, key in zip(outputs, ("F_t", "F_t2"), strict=True):
        # At N = 2 the target returns the digits that its input has lost, see below.
        tolerance = 5e-5 if stored["num_scales"] == 2 else 1e-5
        assert golden.relative_error(got, stored[key]) < tolerance
    # Float32 through up to four networks; N = 2 steps from t = 80 to 0.002.
    name = distance.__name__
    torch.testing.assert_close(loss, stored[f"per_sample_{name}"], rtol=2e-5, atol=0)
    torch.testing.assert_close(loss.mean(), stored[f"loss_{name}"], rtol=1e-5, atol=0)
    # The official mask takes the images that fill up a batch out of the mean: here the last one.
    masked = stored[f"loss_{name}_mask_last_off"]
    torch.testing.assert_close(loss[:-1].mean(), masked, rtol=1e-5, atol=0)
    for weighting in ("snr", "snrp1", "truncated_snr") if distance is l2 else ():
        weight = golden.WEIGHTINGS[golden_jax.WEIGHTINGS[weighting]](t)
        expected = stored[f"loss_l2_{weighting}"]
        torch.testing.assert_close((weight * loss).mean(), expected, rtol=1e-5, atol=0)
    if f"grad_{name}_global_norm" not in stored:
        return
    loss.mean().backward()
    weights = dict(online.network.named_parameters())
    names = {official: ours for ours, official in flax_names(online.network).items()}
    gradients = {
        official: weights[ours].grad for official, ours in names.items() if ours in weights
    }
    norm = torch.nn.utils.get_total_norm([g for g in gradients.values() if g is not None])
    torch.testing.assert_close(norm, stored[f"grad_{name}_global_norm"], rtol=1e-5, atol=0)
    prefix = f"grad_{name}_leafnorm/"
    for key in (key for key in stored if key.startswith(prefix)):
        official = key.removeprefix(prefix)
        if official.endswith("NIN_1/b"):  # softmax does not see the key's bias
            assert gradients[official].norm() < 1e-6 * norm
        elif official in gradients:
            # Sums over pixels that cancel; the bare network's error of 3e-6 grows.
            torch.testing.assert_close(gradients[official].norm(), stored[key], rtol=1e-4, atol=0)
        else:
            assert official == "GaussianFourierProjection_0/W" and stored[key] == 0
    prefix, raw = f"grad_{name}/", golden.arrays(f"jcm_losses/{case}.npz")
    for key in (key for key in raw if key.startswith(prefix)):
        expected = raw[key].permute(AXES[raw[key].ndim])
        assert golden.relative_error(gradients[key.removeprefix(prefix)], expected) < 5e-5, key


def test_edm_loss_equals_the_official_one() -> None:
    stored = golden_jax.images("jcm_losses/edm_dsm.npz")
    x = golden_jax.images("jcm_losses/images.npz")["x"]
    with torch.no_grad():
        loss = edm_loss(golden_jax.model("edm", "teacher"), x, stored["z"], stored["t"])
    loss = loss * x[0].numel()  # a sum over pixels there
    # Float32 through one network.
    torch.testing.assert_close(loss, stored["per_sample"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.mean(), stored["loss"], rtol=1e-5, atol=0)
