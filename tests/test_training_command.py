"""`cmrepro train` from the command line to its files."""

import json
import pathlib
from collections.abc import Callable

import pytest
from PIL import Image
from report_folder import make_results
from safetensors.torch import load_file
from tiny import state_names

from cmrepro.checkpoints.io import read_info
from cmrepro.consistency.distances import LPIPS
from cmrepro.networks.presets import build_network
from cmrepro.training import step
from cmrepro.training.step import Training

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


def test_a_plan_multiplies_and_writes_nothing(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "demo-cifar10-ct", "--plan", "--format", "json"]
    settings = "network=tiny,batch_size=4,num_gpus=3,total_steps=1000000,schedule_steps=1000"
    code, out, err = run(*arguments, "--set", settings, "--micro-batch", 2)
    assert code == 0, err
    values = {row["quantity"]: row["value"] for row in json.loads(out)}
    assert values["network"] == "tiny, 0.2 million parameters"
    # Weights, average, target, gradient and two moments, in float32.
    count = sum(p.numel() for p in build_network("tiny").parameters())
    assert values["memory"].startswith(f"{6 * 4 * count / 1e9:.3g} GB")
    assert values["images"].startswith("4,000,000 in batches of 4")
    names = ("speed", "duration on 1 device", "duration on 3 devices")
    speed, one, three = (float(values[name].split()[0].replace(",", "")) for name in names)
    # Three digits are printed.
    assert one == pytest.approx(1_000_000 * 4 / speed / 3600, rel=0.02)
    assert three == pytest.approx(one / 3, rel=0.02)
    assert not list(tmp_path.iterdir())

    def interrupted(training: Training, batch: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "train_step", interrupted)
    code, out, err = run(*arguments, "--set", settings, "--format", "table")
    assert code == 130, err
    assert "1,000,000" in out  # known before the first timed step


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
