"""Two pieces of work timed by turns in one process, so that a noisy machine slows both."""

import time
from collections.abc import Callable


def least_seconds(
    first: Callable[[], object], second: Callable[[], object], rounds: int = 5
) -> tuple[float, float]:
    """The least time of each over `rounds` turns, after one turn to warm up."""
    best = [float("inf"), float("inf")]
    for turn in range(rounds + 1):
        for i, work in enumerate((first, second)):
            start = time.perf_counter()
            work()
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]
