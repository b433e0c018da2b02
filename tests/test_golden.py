"""Weights made from their seeds against the stored ones."""

import golden
import golden_jax
import pytest
import torch


@pytest.mark.parametrize("name", golden.SEEDS)
def test_weights_from_seeds_equal_the_stored_ones(name: str) -> None:
    stored = golden.arrays(name)
    if name.startswith(("ncsnpp", "jcm")):
        weights = {k: torch.from_numpy(v) for k, v in golden_jax.parameters(name).items()}
    else:
        weights = golden.adm_weights("uncond" if "uncond" in name else "cond", name)
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[key], value) for key, value in stored.items())
