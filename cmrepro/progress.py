"""Progress of long work on stderr: a bar on a terminal, a line a minute in a pipe or a file."""

import sys
from collections.abc import Iterable
from time import time
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_S = 60
LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
quiet = False  # True hides all progress, as --quiet does


class Lines(tqdm):
    """Progress as lines that end, for pipes and files."""

    last_line_t: float | None = None  # of any bar: many short ones share the minute

    def __init__(self, iterable: Iterable[Any] | None, **settings: Any) -> None:
        settings |= dict.fromkeys(("mininterval", "maxinterval"), LINE_INTERVAL_S)
        # A delay above 0 leaves out the line at the start; without smoothing the rate is the mean.
        settings |= {"delay": 1e-9, "miniters": 1, "smoothing": 0, "leave": False}
        super().__init__(iterable, bar_format=LINE, **settings)
        if not self.disable:
            Lines.last_line_t = self.last_print_t = Lines.last_line_t or self.last_print_t

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line; `msg` is "" where tqdm would clear a bar."""
        if msg is None:
            print(self, file=sys.stderr, flush=True)
            Lines.last_line_t = time()


def progress_bar(
    iterable: Iterable[Any] | None = None, hidden: bool = False, **settings: Any
) -> tqdm:
    """Progress through an iterable, or to a `total` by `update`; `settings` are those of tqdm."""
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(iterable, disable=hidden or quiet, **settings)
