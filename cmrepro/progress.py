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


class Job:
    """One bar over a whole job, in the place of those of its parts, whose shares make `total`."""

    current: "Job | None" = None

    def __init__(self, total: float, hidden: bool) -> None:
        self.bar = progress_bar(None, hidden, total=total, unit_scale=True)
        Job.current, self.share = self, 0.0

    def begin(self, share: float, desc: str) -> None:
        """Begin a part, whose first bar moves this one by `share`."""
        self.share, self.bar.desc = share, desc

    def skip(self, share: float) -> None:
        """Count a part that was finished earlier and took no time."""
        self.bar.initial += share
        self.bar.n += share

    def close(self) -> None:
        """End the job."""
        Job.current = None
        self.bar.close()


class PartBar(tqdm):
    """Hidden bar of a part of a job."""

    def __init__(self, job: Job, total: int, initial: int = 0) -> None:
        super().__init__(disable=True)
        self.job, self.scale, job.share = job, job.share / total, 0.0
        job.skip(self.scale * initial)

    def update(self, n: float | None = 1) -> None:
        self.job.bar.update(self.scale * (n or 0))


def progress_bar(
    iterable: Iterable[Any] | None = None, hidden: bool = False, **settings: Any
) -> tqdm:
    """Progress through an iterable, or to a `total` by `update`; `settings` are those of tqdm."""
    if (job := Job.current) and iterable is None and not hidden and job.share:
        return PartBar(job, settings["total"], settings.get("initial", 0))
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(iterable, disable=hidden or quiet or job is not None, **settings)
