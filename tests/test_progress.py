"""Progress of long work: on a terminal, in a pipe, quiet."""

import io
import itertools

import pytest

from cmrepro import progress
from cmrepro.progress import Lines, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, lengths):
    """Text on stderr of bars with a step every 10 seconds."""
    clock = itertools.count(0, 10).__next__
    now = [0.0]
    for module in ("tqdm.std", "cmrepro.progress"):
        monkeypatch.setattr(f"{module}.time", lambda: now[0])
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(Lines, "last_line_t", None)
    for length in lengths:
        for _ in progress_bar(range(length), desc="work", unit="step"):
            now[0] = clock()
    return stream.getvalue()


@pytest.mark.parametrize("lengths", [[31], [10, 10, 11], [1] * 31])
def test_a_pipe_gets_a_line_a_minute_from_all_bars_together(monkeypatch, lengths):
    text = shown(monkeypatch, io.StringIO(), lengths)
    assert "\r" not in text
    lines = text.splitlines()
    assert 4 <= len(lines) <= 5  # 300 seconds
    assert all(line.startswith("work: ") and "step" in line for line in lines)


def test_a_terminal_gets_a_bar_and_quiet_nothing(monkeypatch):
    assert shown(monkeypatch, Terminal(), [31]).count("\r") > 10
    monkeypatch.setattr(progress, "quiet", True)
    for stream in (Terminal(), io.StringIO()):
        assert shown(monkeypatch, stream, [31]) == ""
