"""The stored cases: weights made from their seeds, the committed subset against the full set."""

import golden
import golden_jax
import numpy as np
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


@pytest.mark.skipif(not golden.FULL.is_dir(), reason="needs the full set")
def test_the_committed_subset_is_part_of_the_full_set() -> None:
    for path in (p for p in golden.COMMITTED.rglob("*.*") if p.name != "README.md"):
        full = golden.FULL / path.relative_to(golden.COMMITTED)
        if path.suffix != ".npz":
            assert path.read_bytes() == full.read_bytes()
            continue
        with np.load(path) as subset, np.load(full) as whole:
            for key in subset.files:
                got, expected = subset[key], whole[key]  # of some noise the first step alone
                np.testing.assert_array_equal(got, expected[: len(got)] if got.ndim else expected)
