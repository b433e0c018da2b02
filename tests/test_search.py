"""The search for the second time: on made-up scores, the official notebook's, and on a model."""

import pytest
from tiny_checkpoint import save_tiny

from cmrepro import sampling, search
from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.schedules import karras_times
from cmrepro.metrics.evaluate import Scores
from cmrepro.metrics.protocols import load_protocol
from cmrepro.search import SEARCHES, grid_search, search_time, ternary_search
from cmrepro.settings import Selection

# FID of CD (LPIPS) on CIFAR-10 by index of 18 points, 50,000 images each: recorded output of the
# official notebook (openai/consistency_models_cifar10, editing_multistep_sampling.ipynb).
NOTEBOOK = {5: 3.649, 9: 3.319, 10: 3.051, 11: 2.928, 12: 3.049, 13: 3.277, 14: 3.460}
PROTOCOL = load_protocol("embedded")
pytestmark = pytest.mark.usefixtures("presets")


def indices(num_scales):
    """A grid whose times are their own indices."""
    return [float(i) for i in range(num_scales)]


def test_the_official_notebooks_search_is_repeated():
    scores = ternary_search(lambda time: NOTEBOOK[int(time)], indices(18))
    assert scores == NOTEBOOK  # the same points and no other


@pytest.mark.parametrize("num_scales", [3, 4, 5, 6, 7, 18, 40, 201])
def test_the_best_point_of_one_valley_is_found(num_scales):
    """For every position of the valley, and with asymmetric slopes too."""
    counts = []
    for best in range(1, num_scales - 1):
        for slope in (1.0, 50.0):

            def score(time, best=best, slope=slope):
                assert 0 < time < num_scales - 1, "at an end two steps are one"
                return (time - best) * (slope if time > best else -1.0)

            scores = ternary_search(score, indices(num_scales))
            assert min(scores, key=scores.__getitem__) == best
            counts.append(len(scores))
    extremes = min(counts), max(counts)
    assert extremes == {18: (6, 8), 201: (15, 19)}.get(num_scales, extremes)  # as documented


def test_the_grid_finds_a_valley_that_the_ternary_search_misses():
    def score(time):
        return -20.0 if time == 2 else abs(time - 11)

    grid, ternary = grid_search(score, indices(18)), ternary_search(score, indices(18))
    assert list(grid) == list(range(1, 17))
    assert min(grid, key=grid.__getitem__) == 2
    assert min(ternary, key=ternary.__getitem__) == 11


def test_a_model_is_searched(tmp_path, monkeypatch):
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))
    scored: list[bytes] = []
    fids = iter([12.0, 10.0, 11.5, 11.0])

    def score(images, tasks, device):
        assert (images.num_images, tasks[0].num_images, device) == (5, 5, "cpu")
        scored.extend(batch.tobytes() for batch in images.batches(5))
        return [Scores({"fid": next(fids), "kid": 0.1}, 5, [], "", "")]

    monkeypatch.setattr(search, "load_reference", lambda *arguments: None)
    monkeypatch.setattr(search, "score", score)
    truncating = PROTOCOL.replace(to_uint8="truncate")
    evaluated: list[float] = []
    model.register_forward_hook(
        lambda model, inputs, output: evaluated.append(float(inputs[1][0]))
    )
    found = search_time(model, truncating, num_scales=6, num_images=5, seed=1234)
    # In batches of 4 images, and the first step of each but once.
    assert evaluated.count(80.0) == 2 and len(evaluated) == 2 + 4 * 2
    times = karras_times(6).tolist()
    assert [row["index"] for row in found.rows] == [1, 3, 2, 4]
    assert found.rows[3] == {"index": 4, "time": times[4], "fid": 11.0, "kid": 0.1}
    assert found.time == times[3]
    assert found.selection == Selection(
        rule="least fid of 4 among 6 points, the reported metric",
        metric="fid",
        search="ternary",
        protocol="embedded-v1",
        seeds=(1234,),
        num_images=5,
    )
    # Exactly the images that the model gives at this time and seed by the protocol's rule.
    settings = sampling.sampler_settings(model.info, [80.0, times[3]], "truncate")
    assert scored[1] == sampling.sample(model, settings, 5, 1234, 8).stages[-1].tobytes()


def test_an_interrupted_search_continues(tmp_path, monkeypatch):
    """Neither scores nor first steps that were there are made again."""
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))
    evaluated: list[float] = []
    model.register_forward_hook(
        lambda model, inputs, output: evaluated.append(float(inputs[1][0]))
    )
    fids = [12.0, 10.0, None, 11.5, 11.0]

    def score(images, tasks, device):
        if (value := fids.pop(0)) is None:
            raise KeyboardInterrupt
        return [Scores({"fid": value}, 4, [], "", "")]

    monkeypatch.setattr(search, "load_reference", lambda *arguments: None)
    monkeypatch.setattr(search, "score", score)
    how = {"num_scales": 6, "num_images": 4, "folder": tmp_path / "search"}
    with pytest.raises(KeyboardInterrupt):
        search_time(model, PROTOCOL, **how)
    found = search_time(model, PROTOCOL, **how)
    assert [row["fid"] for row in found.rows] == [12.0, 10.0, 11.5, 11.0]
    assert len(evaluated) == 1 + 4  # one batch of images; the third was sampled already


def test_a_third_time_is_searched_below_the_second(tmp_path, monkeypatch):
    """The inner points of the grid below it, with images of three steps."""
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))
    times = karras_times(6).tolist()
    scored: dict[bytes, float] = {}

    def score(images, tasks, device):
        scored[next(images.batches(4)).tobytes()] = value = 10.0 - len(scored)
        return [Scores({"fid": value}, 4, [], "", "")]

    monkeypatch.setattr(search, "load_reference", lambda *arguments: None)
    monkeypatch.setattr(search, "score", score)
    how = {"method": "grid", "num_scales": 6, "num_images": 4}
    found = search_time(model, PROTOCOL, after=[80.0, 10.0], **how)
    below = [i for i in range(1, 5) if times[i] < 10]
    assert [row["index"] for row in found.rows] == below and found.time == times[4]
    for time, images in zip([times[i] for i in below], scored, strict=True):
        settings = sampling.sampler_settings(model.info, [80.0, 10.0, time])
        assert sampling.sample(model, settings, 4, 1000, 8).stages[-1].tobytes() == images


def test_the_grid_is_the_last_one_of_the_recipe(tmp_path, monkeypatch):
    points: list[int] = []

    def probe(score, times):
        points.append(len(times))
        return {1: 0.0}

    monkeypatch.setattr(search, "load_reference", lambda *arguments: None)
    monkeypatch.setitem(SEARCHES, "ternary", probe)
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors"))  # s1 = 10
    search_time(model, PROTOCOL)
    search_time(model, PROTOCOL, num_scales=7)
    assert points == [11, 7]


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ({}, {"seed": 999}, "got seed = 999; seeds below 1000 are for scores that are reported"),
        ({}, {"num_scales": 2}, "got a grid of 2 points"),
        ({}, {"after": [80.0, 0.003]}, "a last time of 0.003, below which"),
        ({"recipe": None}, {}, "got a grid of unknown points .* with --grid"),
        ({"parameterization": "edm"}, {}, "is an EDM denoiser, which has no second time"),
    ],
)
def test_impossible_searches_are_refused(tmp_path, header, arguments, message):
    model = load_model(save_tiny(tmp_path / "tiny-cd.safetensors", **header))
    with pytest.raises(ValueError, match=message):
        search_time(model, PROTOCOL, **arguments)
