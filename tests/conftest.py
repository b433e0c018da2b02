"""Fixtures of several test files."""

import sys
from pathlib import Path

import pytest
from report_folder import make_results
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


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up results and their report; not to be written to."""
    folder = tmp_path_factory.mktemp("report")
    make_results(folder)
    write_report(folder)
    return folder
