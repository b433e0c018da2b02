"""Released checkpoints by name: their headers, their model cards, and records made with them."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from typing import Any

import pytest
import torch
from official_files import release, use_small_networks

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import bundled_checkpoints, load_model, read_info
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
from cmrepro.cli import main as cli
from cmrepro.data import ImageDataset
from cmrepro.experiments.run import evaluate, sampled_origin
from cmrepro.metrics.protocols import load_protocol
from cmrepro.paper import AbsoluteClaim, claims
from cmrepro.records3 import RunRecord
from cmrepro.report.verdicts import absolute_verdict
from cmrepro.sampling import sample, sampler_settings
from cmrepro.training.recipes import load_recipe

TRAINED = [entry.name for entry in released_checkpoints().values() if entry.recipe]


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    use_small_networks(monkeypatch, tmp_path / "cache")


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> ReleasedCheckpoint:
    return release(monkeypatch)


def test_a_released_name_is_converted_once_and_then_loaded(released: ReleasedCheckpoint) -> None:
    with pytest.raises(ValueError, match=f"run 'cmrepro checkpoints convert {released.name}'"):
        load_model(released.name)
    assert convert(released.name) == released.converted
    model = load_model(released.name)
    info = model.info
    assert (model.path, info.selection) == (released.converted, "as released")
    assert info.two_step_time == released.two_step_time
    assert info.parameterization == "boundary"
    for key in ("name", "url", "licence", "model_card", "dataset", "method", "distance"):
        assert info.origin[key] == getattr(released, key)


@pytest.mark.parametrize("name", TRAINED)
def test_the_registry_says_what_the_recipes_say_of_training(name: str) -> None:
    """Steps as released; what the commands for training others change, as in Table 3."""
    entry = released_checkpoints()[name]
    released, paper = (load_recipe(str(entry.recipe), v) for v in ("released", "paper"))
    assert entry.training_steps == released.total_steps
    assert entry.global_batch == paper.batch_size
    assert entry.initialisation == paper.initialisation
    assert entry.ema_rate == paper.ema_rate
    assert entry.images_seen == released.total_steps * paper.batch_size


def test_only_models_of_table_3_have_a_published_training() -> None:
    for entry in released_checkpoints().values():
        fields = (entry.training_steps, entry.global_batch, entry.initialisation, entry.ema_rate)
        assert all(value is None for value in (*fields, entry.images_seen)) != bool(entry.recipe)
        # A flax file holds an average, which is what is read; some other files have it as name.
        says_it = entry.format == "flax" or entry.url.endswith("_ema.pt")
        assert entry.weights == ("ema" if says_it else "not stated")


@pytest.mark.parametrize("name", TRAINED)
def test_the_header_says_how_it_was_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = release(monkeypatch, name)
    origin = read_info(convert(name)).origin
    assert origin["steps"] == entry.training_steps
    for key in ("images_seen", "global_batch", "initialisation", "ema_rate", "weights"):
        assert origin[key] == getattr(entry, key), key


def record_of(name: str) -> RunRecord:
    """Of a few images of a released checkpoint."""
    model = load_model(name)
    settings = sampler_settings(model.info, 1)
    samples = sample(model, settings, 12, 0, model.image_size)
    images = ImageDataset(name, samples.stages[-1])
    origin = sampled_origin(model, settings, 0, samples)
    reference = "cifar10-jpeg-train"  # named, since it is of other data than the model's
    [record] = evaluate(
        images, [load_protocol("embedded")], origin, references=[reference], num_images=12
    )
    return record


@pytest.mark.parametrize("name", ["cifar10-cd-lpips", "lsun-bedroom256-ct-lpips"])
def test_its_records_can_be_compared_with_the_paper(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = release(monkeypatch, name)
    convert(name)
    record = record_of(name)
    expected: dict[str, Any] = {
        "network": entry.network,
        "dataset": entry.dataset,
        "images_seen": entry.images_seen,
        "global_batch": entry.global_batch,
        "initialisation": entry.initialisation,
        "weights": entry.weights,
        "training_steps": entry.training_steps,
        "scale": "paper",
        "protocol_version": 1,
    }
    assert expected.items() <= record.comparable.items()
    assert record.comparable["selection"]["rule"] == "as released"
    ours = [
        claim
        for claim in claims()
        if isinstance(claim, AbsoluteClaim)
        and (claim.setting.recipe, claim.setting.nfe) == (entry.recipe, 1)
        and claim.setting.metric in record.scores
    ]
    assert ours
    for claim in ours:
        verdict = absolute_verdict(claim, [record])
        assert verdict.answer == "not comparable"  # another protocol, few images
        assert "protocol" in verdict.reason and "images scored" in verdict.reason
        assert "images seen" not in verdict.reason and "batch" not in verdict.reason
        same = dataclasses.replace(
            record,
            num_images=claim.num_images,
            protocol=record.protocol | {"name": claim.setting.protocol},
            comparable=record.comparable | {"network": claim.network},  # a small one stands in
        )
        assert absolute_verdict(claim, [same]).answer == "inconclusive"  # a single seed


@pytest.mark.parametrize("name", released_checkpoints())
def test_every_model_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = release(monkeypatch, name)
    path = convert(name, dtype=torch.float16)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    sha = hashlib.sha256(entry.downloaded.read_bytes()).hexdigest()
    for text in (entry.url, entry.licence, entry.model_card, entry.repository, sha):
        assert text in card
    assert "rounded to float16" in card
    # The official model cards' intended use, and what is out of it.
    assert "for research" in card
    assert "Not for commercial products" in card and "propaganda" in card
    # What they say of the images and of LPIPS; CIFAR-10 shows no people.
    assert ("with people among" in card) == (entry.dataset != "cifar10-train")
    assert "trained on ImageNet" in card
    if entry.recipe:
        assert f"{entry.training_steps:,} steps of {entry.global_batch:,} images" in card
    assert ("the source does not state it" in card) == (entry.weights != "ema")
    assert "{" not in card and "None" not in card  # nothing of the template is left


def test_the_card_of_a_folder_shows_its_use(
    released: ReleasedCheckpoint, tmp_path: pathlib.Path
) -> None:
    folder = convert(released.name, tmp_path / "folder", to="diffusers")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "timesteps=[22, 0]" in card and released.licence in card


def test_a_released_name_knows_its_network(
    released: ReleasedCheckpoint, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "x.safetensors"
    for choice, said in (
        ({"network": "deep"}, "is of network 'tiny', got --network deep"),
        (
            {"parameterization": "edm"},
            "is of parameterization 'boundary', got --parameterization edm",
        ),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            convert(released.name, out, **choice)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_the_command_line(
    released: ReleasedCheckpoint,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str | pathlib.Path) -> str:
        monkeypatch.setattr(sys, "argv", ["cmrepro", "checkpoints", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    rows = {row["name"]: row for row in json.loads(run("list", "--format", "json"))}
    assert rows.keys() == {*bundled_checkpoints(), *released_checkpoints()}
    assert rows[released.name]["state"] == "downloaded"
    assert rows[released.name]["images seen"] == released.images_seen
    assert rows["edm-cifar10"]["state"] == "not here"
    assert run("fetch", released.name).strip() == str(released.downloaded)
    assert json.loads(run("inspect", released.name))["format"] == "torch"
    assert run("convert", released.name).strip() == str(released.converted)
    out = tmp_path / "folder"
    arguments = ("--to", "diffusers", "--network", "tiny", "--parameterization", "boundary")
    run("convert", released.converted, *arguments, "--out", out)
    assert json.loads(run("inspect", out))["two_step_time"] == released.two_step_time
    rows = {row["name"]: row for row in json.loads(run("list", "--format", "json"))}
    assert rows[released.name]["state"] == "converted"
