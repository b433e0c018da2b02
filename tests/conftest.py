"""Fixtures of several test files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_folder import make_results
from tiny import tiny_networks, tiny_recipe, tiny_train
from tiny_checkpoint import tiny_presets

from cmrepro.cli import main as cli
from cmrepro.report.render import write_report


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmrepro", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def presets():
    """The networks of `tiny_checkpoint`."""
    with tiny_presets():
        yield


@pytest.fixture(scope="module")
def networks() -> Iterator[None]:
    """The presets "tiny" and "deep"."""
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def teacher(networks: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a denoiser after 2 steps."""
    return tiny_train(tiny_recipe("edm", total_steps=2), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up results and their report; not to be written to."""
    folder = tmp_path_factory.mktemp("report")
    make_results(folder)
    write_report(folder)
    return folder
