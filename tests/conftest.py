"""Fixtures of several test files."""

import sys

import pytest

from cmrepro import cli


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
