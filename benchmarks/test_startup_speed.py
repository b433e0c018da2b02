"""How long does the command line take until it answers, against Python with click alone?"""

import subprocess
import sys

import pytest


# None of these may import torch, which takes ten times as long as a bare start.
@pytest.mark.parametrize(
    ("arguments", "at_most"),
    [
        pytest.param(["--help"], 2, id="help"),
        pytest.param(["table3", "--format", "csv"], 4, id="table3"),
    ],
)
def test_command_over_bare_start(benchmark, gate, arguments, at_most):
    def run(*command):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    def ours():
        run("-m", "cmrepro", *arguments)

    benchmark.pedantic(ours, rounds=2, warmup_rounds=1)
    name = f"cmrepro {' '.join(arguments)} over a bare start"
    gate.ratio(name, ours, lambda: run("-c", "import click"), at_most=at_most, pairs=5)
