"""Start of the command line against Python with click alone."""

import subprocess
import sys

import pytest


# Neither may import torch, which takes ten times as long as a bare start, nor `--help` pandas.
# No baseline: a process's start costs up to 15 % more CPU time on a loaded machine.
@pytest.mark.parametrize(
    ("arguments", "at_most"),
    [
        pytest.param(["--help"], 1.7, id="help"),
        pytest.param(["table3", "--format", "csv"], 3, id="table3"),
    ],
)
def test_command_over_bare_start(benchmark, gate, arguments, at_most):
    def run(*command):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    def ours():
        run("-m", "cmrepro", *arguments)

    benchmark.pedantic(ours, rounds=2, warmup_rounds=1)
    name = f"cmrepro {' '.join(arguments)} over a bare start"
    gate.bound(name, ours, lambda: run("-c", "import click"), at_most=at_most, pairs=5)
