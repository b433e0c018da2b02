"""What the training refuses, in one line and before it writes anything."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny import DATA, tiny_networks, tiny_recipe

from cmrepro.data import synthetic
from cmrepro.training.loop import train

OTHER_DATA = synthetic(10, 8, seed=1)


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Short runs that others are refused with."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"total_steps": 1}
    recipes = {
        "edm": tiny_recipe("edm", **short),
        "deep": tiny_recipe("edm", network="deep", **short),
        "other-data": tiny_recipe("edm", dataset="cifar10-train", **short),
        "ct": tiny_recipe("ct", **short),
    }
    return {name: train(recipe, DATA, folder / name) for name, recipe in recipes.items()}


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "changes", "teacher", "message"),
    [
        ("cd", {}, None, "recipe 'demo-cifar10-cd' needs a teacher; give one with --teacher"),
        ("edm", {}, "edm", "recipe 'demo-cifar10-edm' takes no teacher; leave out --teacher"),
        ("ct", {}, "edm", "recipe 'demo-cifar10-ct' takes no teacher"),
        ("ct", {"initialisation": "teacher"}, None, "recipe 'demo-cifar10-ct' needs a teacher"),
        ("cd", {}, "deep", "the teacher is not of network 'tiny': it has a surplus parameter"),
        ("cd", {"network": "deep"}, "edm", "the teacher is not of network 'deep': it lacks"),
        ("cd", {}, "ct", "is no EDM denoiser; give one trained by EDM"),
        ("cd", {}, "other-data", "was trained on cifar10-train, the recipe is for cifar10-jpeg"),
        ("cd", {"solver": "hein"}, "edm", "unknown solver 'hein': did you mean 'heun'?"),
        ("edm", {"optimizer": "radm"}, None, "unknown optimizer 'radm': did you mean 'radam'?"),
        ("ct", {"distance": "pseudo_huber"}, None, "did you mean 'pseudo-huber'?"),
        ("edm", {"network": "tinny"}, None, "unknown network 'tinny': did you mean 'tiny'?"),
        ("edm", {"network": "demo"}, None, "'synthetic' has 8x8 images, network 'demo' takes"),
        ("edm", {"learning_rate": -1.0}, None, "Invalid learning rate: -1.0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: pathlib.Path,
    runs: dict[str, pathlib.Path],
    method: str,
    changes: dict[str, Any],
    teacher: str | None,
    message: str,
) -> None:
    out = tmp_path / "out"
    recipe, path = tiny_recipe(method, **changes), runs[teacher] if teacher else None
    assert message in error_of(lambda: train(recipe, DATA, out, teacher=path))
    assert not out.exists()


def test_a_teacher_that_does_not_exist_is_refused(tmp_path: pathlib.Path) -> None:
    """And training never goes on from random weights instead."""
    missing = tmp_path / "missing.safetensors"
    message = error_of(lambda: train(tiny_recipe("cd"), DATA, tmp_path / "out", teacher=missing))
    assert f"'{missing}'" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_the_generators_cannot_hold_is_refused(
    tmp_path: pathlib.Path, seed: int
) -> None:
    message = error_of(lambda: train(tiny_recipe("edm"), DATA, tmp_path, seed=seed))
    assert f"got seed = {seed}; allowed is 0 to 4294967295" in message


def test_the_largest_seed_trains(tmp_path: pathlib.Path) -> None:
    assert train(tiny_recipe("edm", total_steps=1), DATA, tmp_path, seed=(1 << 32) - 1).is_file()


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a finished run of one step."""
    train(tiny_recipe("edm", total_steps=1), DATA, tmp_path / "run")
    return tmp_path / "run"


STATE = "state-00000001.pt"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "seed", "data", "message"),
    [
        ({"learning_rate": 1e-4}, 0, DATA, "learning_rate is 0.001, not 0.0001"),
        ({}, 1, DATA, "seed is 0, not 1"),
        ({}, 0, OTHER_DATA, "data_sha256 is "),
    ],
)
def test_resuming_into_another_run_is_refused(
    run: pathlib.Path, changes: dict[str, Any], seed: int, data: Any, message: str
) -> None:
    before = contents(run)
    recipe = tiny_recipe("edm", **({"total_steps": 1} | changes))
    text = error_of(lambda: train(recipe, data, run, seed=seed, resume=True))
    assert "is of another training: " in text
    assert message in text
    assert contents(run) == before


def test_resuming_into_another_recipe_is_refused(
    tmp_path: pathlib.Path, runs: dict[str, pathlib.Path]
) -> None:
    text = error_of(
        lambda: train(tiny_recipe("edm", total_steps=1), DATA, runs["ct"].parent, resume=True)
    )
    assert "name is 'demo-cifar10-ct', not 'demo-cifar10-edm'" in text


def test_resuming_with_another_teacher_is_refused(
    tmp_path: pathlib.Path, runs: dict[str, pathlib.Path]
) -> None:
    recipe = tiny_recipe("cd", total_steps=1)
    train(recipe, DATA, tmp_path / "cd", teacher=runs["edm"])
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(runs["edm"].read_bytes())
    train(recipe, DATA, tmp_path / "cd", teacher=copy, resume=True)  # the same under another name
    other = train(tiny_recipe("edm", total_steps=2), DATA, tmp_path / "other")
    text = error_of(lambda: train(recipe, DATA, tmp_path / "cd", teacher=other, resume=True))
    assert "is of another training: teacher_sha256 is " in text


def test_a_folder_in_use_is_refused(run: pathlib.Path) -> None:
    recipe = tiny_recipe("edm", total_steps=1)
    for gone in (None, STATE):  # the checkpoint alone is kept too
        if gone:
            (run / gone).unlink()
        before = contents(run)
        text = error_of(lambda: train(recipe, DATA, run))
        assert f"{run} already holds a training; go on with --resume" in text
        assert contents(run) == before


def test_an_empty_folder_cannot_be_resumed(tmp_path: pathlib.Path) -> None:
    text = error_of(lambda: train(tiny_recipe("edm"), DATA, tmp_path, resume=True))
    assert f"no state to resume in {tmp_path}; start without --resume" in text


def test_an_output_folder_that_cannot_be_made_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("kept")
    text = error_of(lambda: train(tiny_recipe("edm"), DATA, tmp_path / "file" / "out"))
    assert f"cannot write {tmp_path / 'file' / 'out'}" in text
    assert (tmp_path / "file").read_text() == "kept"
