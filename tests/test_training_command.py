"""`cmrepro train` from the command line to its files."""

import pathlib
from collections.abc import Callable

import pytest
from PIL import Image
from report_folder import make_results
from safetensors.torch import load_file
from tiny import state_names

from cmrepro.checkpoints.io import read_info
from cmrepro.consistency.distances import LPIPS
from cmrepro.training import step

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("networks")


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of six images of the tiny network's size."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_every_option_reaches_the_training(
    run: Run, tmp_path: pathlib.Path, images: pathlib.Path
) -> None:
    arguments = ["train", "demo-cifar10-ct", "--data", images, "--out", tmp_path / "run"]
    arguments += ["--micro-batch", 2, "--precision", "bf16", "--seed", 3]
    arguments += ["--save-every", 2, "--sample-every", 3, "--name", "mine"]
    arguments += ["--set", "network=tiny,batch_size=5", "--set", "distance=l2,schedule_steps=6"]
    code, out, err = run(*arguments, "--set", "total_steps=6")
    assert code == 0, err
    path = tmp_path / "run" / "mine.safetensors"
    assert f"wrote {path}" in out
    info = read_info(path)
    trained = info.training
    assert info.recipe and trained and trained.provenance
    assert (info.recipe.network, info.recipe.distance) == ("tiny", "l2")
    assert (trained.seed, trained.precision, trained.dataset) == (3, "bf16", "images")
    assert state_names(path.parent) == ["state-00000004.pt", "state-00000006.pt"]
    samples = sorted(p.name for p in (path.parent / "samples").iterdir())
    assert samples == ["00000003.png", "00000006.png"]
    code, _, err = run(*arguments, "--set", "total_steps=8", "--resume")
    assert code == 0, err
    assert state_names(path.parent)[-1] == "state-00000008.pt"
    make_results(path.parent)
    code, out, err = run("report", "--out", path.parent)
    assert code == 0, err
    assert f"wrote {path.parent / 'results/figures/training_mine.svg'}\n" in out


@pytest.mark.slow
def test_a_recipe_of_table_3_runs_as_shipped(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch of one; LPIPS has random weights, since its own are a download."""
    monkeypatch.setitem(step.DISTANCES, "lpips", lambda: LPIPS(pretrained=False))
    settings = "total_steps=20,batch_size=1"
    arguments = ["train", "cifar10-ct", "--data", "synthetic", "--out", tmp_path]
    code, _, err = run(*arguments, "--set", settings)
    assert code == 0, err
    weights = load_file(tmp_path / "cifar10-ct.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
