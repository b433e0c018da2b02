"""README: its commands parse as printed, and those of its code blocks run, with small numbers."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from cmrepro.checkpoints.io import bundled_checkpoints
from cmrepro.cli.main import cli
from cmrepro.metrics import protocols

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ").replace("\\|", "|")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind != "python" for line in block.splitlines() if line]
# The table of commands, with placeholders, choices a|b and [optional parts].
SPANS = [
    re.sub(r"[\[\]]|(?<=\w) …", "", span)
    for row in re.findall(r"^\| (`cmrepro .*?`) \| ", TEXT, re.MULTILINE)
    for span in re.findall(r"`(cmrepro .+?)`", row)
]
FEW = 12
SMALLER = {
    "train": ["--set", "total_steps=2,batch_size=4", "--sample-every", "0"],
    "reproduce": ["--num-images", str(FEW), "--seeds", "1"],
    **{key: ["--num-images", str(FEW)] for key in ("sample", "search-times", "evaluate")},
}
INSTEAD = {"cuda": "cpu", "cifar10-cd-lpips": "demo-cifar10-cd"} | dict.fromkeys(
    ("cm-cifar10", "torch-fidelity"), "embedded"
)


def words_of(line):
    """The words after "cmrepro" of a line, or of the recipe of a make target; [] without it."""
    if line.startswith("make "):
        line = subprocess.check_output(["make", "-n", *line.split()[1:]], cwd=ROOT, text=True)
    elif "cmrepro" not in line:
        assert line.split()[0] in ("pip", "git", "cd", "python"), line
    found = re.search(r"(?:^|/|-m )cmrepro (.+)", line, re.MULTILINE)
    return [INSTEAD.get(word, word) for word in shlex.split(found[1])] if found else []


@pytest.mark.parametrize("line", [*LINES, *SPANS])
def test_a_command_parses_as_printed(line):
    """With the first of its choices a|b; subcommands all exist."""
    if not (words := words_of(line)):
        return
    command = cli.get_command(click.Context(cli), words[0])
    if isinstance(command, click.Group):
        names = words.pop(1).split("|")
        assert set(names) <= {*command.commands}
        command = command.commands[names[-1]]
    if words[1:]:
        command.make_context(words[0], [word.split("|")[0] for word in words[1:]])


def stand_in(path):
    """Images, or a checkpoint, for what the reader is expected to have."""
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundled_checkpoints()[path.stem], path)
        return
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    folder = path.with_suffix("")
    (folder / "class").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "class" / f"{i:02}.png")
    if path.suffix == ".npz":
        np.savez(path, images)
    elif path.suffix:
        shutil.make_archive(str(folder), "zip", folder)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """An empty folder, and a protocol of few images."""
    built_in = protocols._built_in()
    built_in["protocols"]["embedded"]["num_images"] = FEW
    built_in["protocols"]["embedded"]["stored_features"]["num_images"] = 40
    monkeypatch.setattr(protocols, "_built_in", lambda: built_in)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_code_blocks_run_in_their_order(run):
    for line in LINES:
        if not (words := words_of(line)):
            continue
        for option, word in itertools.pairwise(words):
            is_file = re.search(r"\.(npz|zip|safetensors)$|./$", word)
            if is_file and option != "--out" and not Path(word).exists():
                stand_in(Path(word))
        words += SMALLER.get(words[0], [])
        if line.startswith("torchrun"):
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
            subprocess.run([*launch, "-m", "cmrepro", *words], check=True)
        else:
            code, _, err = run(*words)
            assert code == 0, f"{line}: {err}"


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "python"])
def test_the_python_blocks_run(block):
    exec(re.sub(r"num_images=\d+", f"num_images={FEW}", block), {})
