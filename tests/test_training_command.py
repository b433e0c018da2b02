"""`cmrepro train` from the command line to its files."""

import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from PIL import Image
from tiny import tiny_networks

from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import load_model
from cmrepro.cli import main as cli
from cmrepro.training import step
from cmrepro.training.plan import RandomLPIPS

Run = Callable[..., tuple[int, str, str]]
TINY = ["train", "demo-cifar10-ct", "--data", "synthetic", "--set"]


@pytest.fixture(autouse=True, scope="module")
def networks() -> Iterator[None]:
    with tiny_networks():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; gives exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmrepro", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return call


@pytest.fixture
def images(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of six images of the tiny network's size, one of which cannot be decoded."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def test_every_option_reaches_the_training(
    run: Run, tmp_path: pathlib.Path, images: pathlib.Path
) -> None:
    settings = "network=tiny,batch_size=5,total_steps=6,distance=l2,schedule_steps=none"
    arguments = ["train", "demo-cifar10-ct", "--data", images, "--out", tmp_path / "run"]
    arguments += ["--max-unreadable", 1, "--micro-batch", 2, "--precision", "bf16", "--seed", 3]
    arguments += ["--save-every", 2, "--keep", 2, "--sample-every", 3, "--tensorboard"]
    code, out, err = run(*arguments, "--set", settings)
    assert code == 0, err
    path = tmp_path / "run" / "demo-cifar10-ct.safetensors"
    assert out == f"{path}\n"
    assert "a batch of 5: gradients added up over parts of 2, every image with the same" in err
    origin = read_info(path).origin
    expected = {"steps": 6, "seed": 3, "precision": "bf16", "processes": 1, "data": "images"}
    assert origin.items() >= expected.items()
    assert sorted(p.name for p in path.parent.glob("state-*")) == [
        "state-00000004.pt",
        "state-00000006.pt",
    ]
    assert sorted(p.name for p in (path.parent / "samples").iterdir()) == [
        "00000003.png",
        "00000006.png",
    ]
    assert list((path.parent / "tensorboard").iterdir())
    settings = settings.replace("total_steps=6", "total_steps=8,schedule_steps=6").replace(
        ",schedule_steps=none", ""
    )
    code, _, err = run(*arguments, "--set", settings, "--resume")
    assert code == 0, err
    assert read_info(path).origin["steps"] == 8


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ("network=tiny,batchsize=5", [], "unknown recipe field 'batchsize': did you mean 'batch_"),
        ("network=tinny", [], "unknown network 'tinny': did you mean 'tiny'"),
        ("network=tiny", ["--precision", "fp61"], "unknown precision 'fp61'"),
        ("network=tiny", ["--micro-batch", "0"], "0 is not in the range x>=1"),
        ("distance=l2", ["--resume"], "no state to resume in "),
        ("network=tiny,dropout=0.1", ["--compile"], "got --compile with dropout = 0.1"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, tmp_path: pathlib.Path, settings: str, options: list[str], message: str
) -> None:
    arguments = ["train", "demo-cifar10-ct", "--data", "synthetic", "--out", tmp_path / "out"]
    code, out, err = run(*arguments, "--set", settings, *options)
    assert (code, out) == (2, "")
    assert err.startswith("cmrepro: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_named(
    run: Run, tmp_path: pathlib.Path, images: pathlib.Path
) -> None:
    arguments = ["train", "demo-cifar10-edm", "--data", images, "--out", tmp_path / "out"]
    code, _, err = run(*arguments, "--set", "network=tiny,batch_size=5,total_steps=6")
    assert code == 2
    assert "3.png" in err
    assert "--max-unreadable" in err


@pytest.mark.slow
def test_a_recipe_of_table_3_runs_as_shipped(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch of one; LPIPS has random weights, since its own are a download."""
    monkeypatch.setitem(step.DISTANCES, "lpips", RandomLPIPS)
    settings = "total_steps=20,batch_size=1"
    arguments = ["train", "cifar10-ct", "--data", "synthetic", "--out", tmp_path]
    code, _, err = run(*arguments, "--set", settings)
    assert code == 0, err
    model = load_model(tmp_path / "cifar10-ct.safetensors")
    assert model.info.recipe["distance"] == "lpips"
    assert model.info.origin["images_seen"] == 20
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
