"""Released checkpoints by name: the registry against the paper's data, and their conversion."""

import pathlib

import pytest
from artifacts import ARTIFACTS
from official_files import release, use_small_networks

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import bundled_checkpoints
from cmrepro.checkpoints.load import checkpoint_rows, contents, load_model
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
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
    wanted = {name for name in recipe_names() if not name.startswith("demo-")}
    assert set(TRAINED.values()) == wanted


@pytest.mark.parametrize("name", ["cifar10-cd-lpips", "lsun-bedroom256-ct-lpips", "edm-cifar10"])
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
    assert info.converted is not None
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
