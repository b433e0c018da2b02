"""Released checkpoints by name: the registry against the paper's data, and their conversion."""

import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from artifacts import ARTIFACTS
from official_files import (
    official_step,
    release,
    use_small_networks,
    weights_of,
    write_official,
)

from cmrepro import sampling
from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import bundled_checkpoints
from cmrepro.checkpoints.load import checkpoint_rows, contents, load_model
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
from cmrepro.paper import TABLE3_RECIPES
from cmrepro.training.methods import two_step_time
from cmrepro.training.recipes import load_recipe, recipe_names

RELEASED = released_checkpoints()
# The models of Table 3: their training is published.
TRAINED = {e.name: e.training.stands_for for e in RELEASED.values() if e.training.total_steps}


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> ReleasedCheckpoint:
    use_small_networks(monkeypatch, tmp_path / "cache")
    return release(monkeypatch)


def test_addresses_and_sizes_are_those_of_the_list_of_artifacts() -> None:
    kinds = {"checkpoint, flax": "flax", "checkpoint, PyTorch state dict": "torch"}
    published = {
        url: (kinds[row["kind"]], row["bytes_approx"], row["checksum"])
        for url, row in ARTIFACTS.items()
        if row["kind"] in kinds
    }
    ours = {e.url: (e.format, str(e.bytes_approx), "") for e in RELEASED.values()}
    assert ours == published  # their checksums are not published either


@pytest.mark.parametrize("name", TRAINED)
def test_registry_and_recipes_agree(name: str) -> None:
    """Steps as released; batch, start and EMA rate as in Table 3."""
    entry, training = RELEASED[name], RELEASED[name].training
    recipe, paper = (load_recipe(TRAINED[name], variant) for variant in ("released", "paper"))
    for field in ("network", "sigma_min", "sigma_max"):
        assert getattr(entry, field) == getattr(recipe, field), field
    for field in ("method", "dataset", "total_steps"):
        assert getattr(training, field) == getattr(recipe, field), field
    for field in ("batch_size", "initialisation", "ema_rate"):
        assert getattr(training, field) == getattr(paper, field), field
    assert training.images_seen == recipe.total_steps * paper.batch_size
    # The release says "lpips" of both of its forms (deviation `lpips-implementation`).
    assert training.distance == str(recipe.distance).removesuffix("-average")
    assert entry.two_step_time == two_step_time(recipe)


def test_every_recipe_of_table_3_has_its_checkpoint() -> None:
    assert {*TABLE3_RECIPES.values()} <= {*TRAINED.values()} <= {*recipe_names()}


@pytest.mark.parametrize("name", ["cifar10-ct-lpips", "lsun-bedroom256-ct-lpips", "edm-cifar10"])
def test_load_converts_an_official_file_on_first_use(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")
    entry = release(monkeypatch, name)  # its file was put into the cache by hand
    with pytest.raises(ValueError, match="got --network deep"):
        convert(name, network="deep")
    model = load_model(name)
    info = model.info
    assert model.path == entry.converted
    assert (info.selection.rule, info.training) == ("as released", entry.training)
    assert info.converted is not None and info.converted.step == official_step(entry)
    for key in ("name", "url", "licence", "format"):
        assert getattr(info.converted, key) == getattr(entry, key)
    for key in ("network", "parameterization", "sigma_min", "sigma_max", "two_step_time"):
        assert getattr(info, key) == getattr(entry, key)
    entry.downloaded.unlink()
    assert load_model(name).info == info  # from the converted file alone


def test_tables_show_the_state(released: ReleasedCheckpoint) -> None:
    def states() -> dict[str, str]:
        return {row["name"]: row["state"] for row in checkpoint_rows()}

    assert states().keys() == {*bundled_checkpoints(), *released_checkpoints()}
    assert states()[released.name] == contents(released.name)["state"] == "downloaded"
    assert states()["edm-cifar10"] == contents("edm-cifar10")["state"] == "not downloaded"
    convert(released.name)
    assert states()[released.name] == "converted"
    found = contents(released.name)
    assert found["training"]["stands_for"] == "imagenet64-cd"
    assert (found["format"], found["selection"]["rule"]) == ("safetensors", "as released")


@pytest.mark.parametrize("name", ["cifar10-cd-lpips", "imagenet64-ct-lpips"])
def test_official_files_are_fetched_listed_and_cleaned(
    name: str, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """From a mirror, then put there by hand under the official name; a wrong one is refused."""
    use_small_networks(monkeypatch, tmp_path / "cache")
    entry = release(monkeypatch, name)
    monkeypatch.setenv("CMREPRO_MIRROR", str(tmp_path / "mirror"))
    at_mirror = tmp_path / "mirror" / "consistency" / entry.official_name
    at_mirror.parent.mkdir(parents=True)
    entry.downloaded.rename(at_mirror)
    official = at_mirror.read_bytes()
    at_mirror.write_bytes(official[:-1000])
    code, _, err = run("checkpoints", "fetch", name)
    assert (code, err.count("\n")) == (1, 1) and "wrong file" in err
    at_mirror.write_bytes(official)
    assert run("checkpoints", "fetch", name, "--quiet")[0] == 0
    assert load_model(name).info.converted.sha256 == hashlib.sha256(official).hexdigest()
    assert run("checkpoints", "clean")[1] == f"removed {entry.downloaded}\n"
    entry.converted.unlink()
    code, out, err = run("checkpoints", "list", "--format", "csv")
    assert entry.official_name in out and str(tmp_path / "cache" / "checkpoints") in err
    by_hand = tmp_path / "cache" / "checkpoints" / entry.official_name
    by_hand.parent.mkdir(parents=True, exist_ok=True)
    at_mirror.rename(by_hand)
    assert entry.downloaded == by_hand and load_model(name).path == entry.converted
    assert run("checkpoints", "fetch", name, "--all")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_official_files_convert_sample_and_reload_at_full_size(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    monkeypatch.setattr(sampling, "BATCH_SIZE", 1)
    entry, images = RELEASED[name], []
    write_official(entry, entry.downloaded)
    for _ in range(2):  # of the official file, and of ours alone
        model = load_model(name)
        settings = sampling.sampler_settings(model.info, 2 if "edm" in name else 1)
        images += sampling.sample(model, settings, 1, 0, model.image_size).stages
        entry.downloaded.unlink(missing_ok=True)
    stored = {key: tensor.contiguous() for key, tensor in model.network.state_dict().items()}
    torch.testing.assert_close(stored, weights_of(entry.network), rtol=0, atol=0)
    np.testing.assert_array_equal(*images)
    assert images[0].std() > 1
    entry.converted.unlink()
