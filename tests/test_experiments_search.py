"""The search for the second time: on made-up scores, the official notebook's, and on a model."""

import dataclasses
import pathlib
from typing import Any

import pytest
import torch

from cmrepro import sampling, search
from cmrepro.checkpoints.io import CheckpointInfo, load_model, save_checkpoint
from cmrepro.consistency.schedules import karras_times
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.score import Scores
from cmrepro.networks import presets
from cmrepro.networks.adm import ADMConfig, UNet
from cmrepro.search import (
    SEARCHES,
    TimeSearch,
    grid_search,
    search_time,
    ternary_search,
)

# FID of CD (LPIPS) on CIFAR-10 by index of 18 points, 50,000 images each: recorded output of the
# official notebook (openai/consistency_models_cifar10, editing_multistep_sampling.ipynb).
NOTEBOOK = {5: 3.649, 9: 3.319, 10: 3.051, 11: 2.928, 12: 3.049, 13: 3.277, 14: 3.460}

PROTOCOL = load_protocol("embedded")
TINY = ADMConfig(32, (1,), 1, (), 32)


def indices(num_scales: int) -> list[float]:
    """A grid whose times are their own indices."""
    return [float(i) for i in range(num_scales)]


def test_the_official_notebooks_search_is_repeated() -> None:
    """The same points and no other, and so the same best one."""
    scores = ternary_search(lambda time: NOTEBOOK[int(time)], indices(18))
    assert scores == NOTEBOOK
    assert min(scores, key=scores.__getitem__) == 11


@pytest.mark.parametrize("num_scales", [3, 4, 5, 6, 7, 18, 40, 151, 201])
def test_the_best_point_of_one_valley_is_found(num_scales: int) -> None:
    """Wherever it lies, and with asymmetric slopes too."""
    most = 0
    for best in range(1, num_scales - 1):
        for slope in (1.0, 50.0):

            def score(time: float, best: int = best, slope: float = slope) -> float:
                assert 0 < time < num_scales - 1, "asked for an end, where two steps are one"
                return (time - best) * (slope if time > best else -1.0)

            scores = ternary_search(score, indices(num_scales))
            assert min(scores, key=scores.__getitem__) == best
            most = max(most, len(scores))
    # Each round asks for two points and leaves two thirds of the interval, rounded up.
    rounds, width = 0, num_scales - 1
    while width > 2:
        rounds, width = rounds + 1, width - width // 3
    assert most <= min(2 * rounds + 1, num_scales - 2)
    if num_scales > 100:
        assert most < (num_scales - 2) / 8  # what it is for


def test_the_grid_finds_what_the_ternary_search_misses() -> None:
    """Two valleys: a broad one, and a deeper narrow one to which the probes are blind."""

    def score(time: float) -> float:
        return -20.0 if time == 2 else abs(time - 11)

    grid, ternary = grid_search(score, indices(18)), ternary_search(score, indices(18))
    assert list(grid) == list(range(1, 17))
    assert min(grid, key=grid.__getitem__) == 2
    assert min(ternary, key=ternary.__getitem__) == 11


@pytest.fixture
def checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setitem(presets.PRESETS, "tiny", (UNet, TINY))
    monkeypatch.setitem(presets.IMAGE_SIZES, "tiny", 8)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 4)
    return save(tmp_path / "tiny-cd.safetensors")


def save(path: pathlib.Path, **fields: Any) -> pathlib.Path:
    torch.manual_seed(1)
    network = UNet(TINY)
    for parameter in network.parameters():  # the zero-initialised output would hide everything
        torch.nn.init.normal_(parameter, std=0.1)
    known: dict[str, Any] = {"parameterization": "boundary", "recipe": {"num_scales": 6}}
    save_checkpoint(path, network, CheckpointInfo("tiny", **DEFAULTS, **(known | fields)))
    return path


DEFAULTS = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}


def with_scores(monkeypatch: pytest.MonkeyPatch, best: int) -> list[bytes]:
    """Scores that are least at the point `best` of 6; gives the images that were scored."""
    scored: list[bytes] = []

    def score(images: Any, tasks: Any, device: str) -> list[Scores]:
        [task] = tasks
        assert (images.num_images, task.num_images, device) == (5, 5, "cpu")
        scored.append(images.images.tobytes())
        index = searched.pop(0)
        return [Scores({"fid": 10.0 + abs(index - best), "kid": 0.1}, 5, [], "", "")]

    searched = [1, 3, 2, 4] if best == 3 else [1, 3, 2]
    monkeypatch.setattr(search, "load_reference", lambda protocol: None)
    monkeypatch.setattr(search, "score", score)
    return scored


def test_a_model_is_searched(checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(checkpoint)
    scored = with_scores(monkeypatch, best=3)
    found = search_time(model, PROTOCOL, num_images=5, seed=1234)
    times = karras_times(6).tolist()
    assert [row["index"] for row in found.rows] == [1, 3, 2, 4]
    assert found.rows[3] == {"index": 4, "time": times[4], "fid": 11.0, "kid": 0.1}
    assert (found.index, found.time) == (3, times[3])
    assert found.selection == (
        f"last checkpoint; second time t(3) = {times[3]:.5g} of 6 points: least fid of 4 by "
        f"ternary search under embedded v{PROTOCOL.version} on 5 images of seed 1234, tuned on "
        "the reported metric"
    )
    # The very images that the model gives at this time and seed.
    settings = sampling.sampler_settings(model.info, [80.0, times[3]])
    images = sampling.sample(model, settings, 5, 1234, 8).stages[-1]
    assert scored[1] == images.tobytes()
    assert len(set(scored)) == 4


def test_a_second_search_replaces_the_first_ones_reason(
    checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selections = []
    for best in (3, 2):
        with_scores(monkeypatch, best)
        found = search_time(load_model(checkpoint), PROTOCOL, num_images=5)
        selections.append(found.selection)
        save(checkpoint, selection=found.selection)
    assert selections[1].startswith("last checkpoint; second time t(2) = ")
    assert selections[1].count("second time") == 1


def test_where_the_number_of_points_comes_from(
    checkpoint: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def end(score: Any, times: list[float]) -> dict[int, float]:
        asked.append(len(times))
        return {1: 0.0}

    monkeypatch.setattr(search, "load_reference", lambda protocol: None)
    monkeypatch.setitem(SEARCHES, "ternary", end)
    for recipe in ({"num_scales": 18}, {"num_scales": None, "s0": 2, "s1": 150}):
        model = load_model(save(checkpoint, recipe=recipe))
        assert isinstance(search_time(model, PROTOCOL), TimeSearch)
        search_time(model, PROTOCOL, num_scales=7)
    assert asked == [18, 7, 151, 7]


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"seed": 2}, "got seed = 2; seeds below 1000 are for scores that are reported"),
        ({}, {"seed": 999}, "got seed = 999"),
        ({}, {"method": "tenary"}, "unknown search 'tenary': did you mean 'ternary'?"),
        ({}, {"num_scales": 2}, "got 2 points of the grid; a point between needs at least 3"),
        ({}, {"num_scales": 0}, "got 0 points of the grid; a point between needs at least 3"),
        ({}, {"num_images": 0}, "got 0 images and seed 1000; allowed are at least 1 image"),
        ({"recipe": {}}, {}, "does not say on which time grid .* with --grid"),
        ({"parameterization": "edm"}, {}, "is an EDM denoiser, which has no second time"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    checkpoint: pathlib.Path, fields: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    model = load_model(save(checkpoint, **fields))
    with pytest.raises(ValueError, match=message) as error:
        search_time(model, PROTOCOL, **arguments)
    assert "\n" not in str(error.value)


def test_a_protocol_without_the_metric_is_refused(checkpoint: pathlib.Path) -> None:
    protocol = dataclasses.replace(PROTOCOL, metrics=("precision", "recall"))
    with pytest.raises(ValueError, match="has no fid, by which the time is chosen"):
        search_time(load_model(checkpoint), protocol)


@pytest.mark.parametrize(("num_scales", "fewest", "most"), [(18, 6, 8), (201, 15, 19)])
def test_the_number_of_scores_that_the_module_states(
    num_scales: int, fewest: int, most: int
) -> None:
    counts = []
    for best in range(1, num_scales - 1):
        scores = ternary_search(lambda time, best=best: abs(time - best), indices(num_scales))
        counts.append(len(scores))
    assert (min(counts), max(counts)) == (fewest, most)
