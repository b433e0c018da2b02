"""Regression gate: ratios of CPU and wall-clock time within one process, scores and images.

Speed: our work and a bare or a peer's run of the same work alternate, each pair gives the ratio of
their CPU times, and the median over the pairs counts. Other machines are faster or slower on both
sides, and other processes take no CPU time of this one. What remains of their disturbance (caches,
memory) moved the median of nine pairs by up to 5 % on two cores with a load of six. So a ratio may
exceed its baseline by `TOLERANCE`, half of the slow-down of 20 % that has to be found; within
`CLEAR` of that limit, more pairs decide.

Waiting takes no CPU time, so the ratio of wall-clock times must stay below the same limit, where
the machine is quiet. The other side measures that in each pair: it only computes, so what it takes
beyond `QUIET` times its own CPU time was taken by other processes. Pairs that they disturbed do
not count, and if these are half or more, wall-clock time is not judged, which the summary says.

Scores: compared with the stored ones, whatever the machine. Images: bit for bit, on a machine of
the same kind, since convolutions round as the processor's instructions make them.
"""

import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

TOLERANCE = 1.10
QUIET = 1.05
CLEAR = 1.05
MAX_SERIES = 4  # of pairs; a failure takes at least two
SCORE_TOLERANCE = 1e-4  # relative, between platforms
ADVICE = "if this is intended: pytest benchmarks --update, and a line in CHANGELOG.md"
SCORE_ADVICE = ADVICE.replace("--update", "--update-scores")

Work = Callable[[], object]


def cpu_seconds() -> float:
    """CPU time of this process with all its threads, and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Pair(NamedTuple):
    """Our time over the peer's, by both clocks."""

    cpu: float
    wall: float
    quiet: bool  # True if the peer was hardly disturbed


def measure(ours: Work, peer: Work, pairs: int) -> list[Pair]:
    """Measure pairs of runs; which side is the first changes from pair to pair."""
    measured = []
    for pair in range(pairs):
        cpu, wall = [0.0, 0.0], [0.0, 0.0]
        for side in (0, 1) if pair % 2 else (1, 0):
            cpu_start, wall_start = cpu_seconds(), time.perf_counter()
            (ours, peer)[side]()
            wall[side] = time.perf_counter() - wall_start
            cpu[side] = cpu_seconds() - cpu_start
        measured.append(Pair(cpu[0] / cpu[1], wall[0] / wall[1], wall[1] <= QUIET * cpu[1]))
    return measured


@dataclass
class Baselines:
    """The stored results: ratios and images of one kind of machine, scores of all.

    Attributes:
        folder: Folder of the files.
        kind: Name of the kind of machine, and of its file.
        machine: Its description.
        update: Store the measured ratios and images as the new baselines of this machine.
        update_scores: Store the measured scores, which all machines share.
    """

    folder: Path
    kind: str
    machine: dict[str, str]
    update: bool
    update_scores: bool
    ratios: dict[str, float] = field(default_factory=dict)
    images_sha256: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)  # ratios without judged wall-clock time

    def __post_init__(self) -> None:
        self.known = self.machine_file.is_file()
        if self.known:
            stored = json.loads(self.machine_file.read_text(encoding="utf-8"))
            self.ratios, self.images_sha256 = stored["ratios"], stored["images_sha256"]
        if self.scores_file.is_file():
            self.scores = json.loads(self.scores_file.read_text(encoding="utf-8"))

    @property
    def machine_file(self) -> Path:
        return self.folder / f"{self.kind}.json"

    @property
    def scores_file(self) -> Path:
        return self.folder / "scores.json"

    def set(self, table: dict[str, Any], name: str, value: float | str) -> None:
        """Store a new value, and note the change."""
        old = table.get(name)
        table[name] = value
        if old != value:
            self.notes.append(f"{name}: {_shown(old)} -> {_shown(value)}")

    def write(self) -> None:
        """Write the file of this machine, of the scores, or both."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files: dict[Path, dict[str, Any]] = {}
        if self.update:
            files[self.machine_file] = {
                "machine": self.machine,
                "ratios": self.ratios,
                "images_sha256": self.images_sha256,
            }
        if self.update_scores:
            files[self.scores_file] = self.scores
        for path, content in files.items():
            path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            self.notes.insert(0, f"wrote {path}")


class Gate:
    """Compares the results of one benchmark with baselines; they go to its `extra_info` too."""

    def __init__(self, benchmark: BenchmarkFixture, baselines: Baselines) -> None:
        self.benchmark, self.baselines = benchmark, baselines

    def ratio(self, name: str, ours: Work, peer: Work, *, at_most: float, pairs: int = 9) -> None:
        """Fail if our time over the peer's is above a bound, or above its baseline.

        Args:
            name: Name of the ratio in the baselines.
            ours: Our work.
            peer: A bare or a peer's run of the same work.
            at_most: Bound of the ratio on any machine.
            pairs: Pairs of one series.
        """
        baselines = self.baselines
        if not baselines.update:
            stored = baselines.ratios.get(name)
            limit = at_most if stored is None else min(at_most, TOLERANCE * stored)
            found = self.bound(name, ours, peer, at_most=limit, pairs=pairs)
            if stored is None:
                baselines.notes.append(
                    f"{name}: {found:.3f}, compared with its bound {at_most} only"
                )
            elif found * TOLERANCE < stored:
                baselines.notes.append(f"{name}: {found:.3f}, faster than its baseline {stored}")
        elif not self.benchmark.disabled:
            ratio = median(pair.cpu for pair in measure(ours, peer, 3 * pairs))
            self.benchmark.extra_info[name] = ratio
            baselines.set(baselines.ratios, name, round(ratio, 3))
            assert ratio <= at_most, f"{name}: {ratio:.3f}, allowed is {at_most}"

    def bound(self, name: str, ours: Work, peer: Work, *, at_most: float, pairs: int = 9) -> float:
        """Fail if our time over the peer's, by either clock as in `Pair`, is above a bound.

        Returns:
            The ratio of CPU times; NaN if nothing is timed (`--benchmark-disable`).
        """
        ours()
        peer()
        if self.benchmark.disabled:
            return math.nan
        measured: list[Pair] = []
        for series in range(1, MAX_SERIES + 1):
            measured += measure(ours, peer, pairs)
            ratios = {"CPU": median(pair.cpu for pair in measured)}
            quiet = [pair.wall for pair in measured if pair.quiet]
            if 2 * len(quiet) > len(measured):
                ratios["wall-clock"] = median(quiet)
            clock, largest = max(ratios.items(), key=lambda item: item[1])
            if largest * CLEAR <= at_most or (largest >= CLEAR * at_most and series > 1):
                break
        self.benchmark.extra_info[name] = ratios
        if "wall-clock" not in ratios:
            self.baselines.disturbed.append(name)
        if largest > at_most:
            pytest.fail(
                f"{name}: {largest:.3f} times the {clock} time of the other side in "
                f"{len(measured)} pairs, allowed is {at_most:.3f}; {ADVICE}",
                pytrace=False,
            )
        return ratios["CPU"]

    def score(self, name: str, value: float) -> None:
        """Fail if a value of fixed seeds differs from the stored one, on any platform."""
        self.benchmark.extra_info[name] = value
        baselines = self.baselines
        if baselines.update_scores:
            baselines.set(baselines.scores, name, value)
        elif name not in baselines.scores:
            pytest.fail(f"{name} has no stored value; {SCORE_ADVICE}", pytrace=False)
        elif value != pytest.approx(stored := baselines.scores[name], rel=SCORE_TOLERANCE):
            pytest.fail(
                f"{name}: {value:.8g}, stored is {stored:.8g} ({value / stored - 1:+.3%}); "
                f"{SCORE_ADVICE}",
                pytrace=False,
            )

    def images(self, name: str, sha256: str) -> None:
        """Fail if images of fixed seeds differ from the stored ones of this kind of machine."""
        self.benchmark.extra_info[name] = sha256
        baselines = self.baselines
        stored = baselines.images_sha256.get(name)
        if baselines.update:
            baselines.set(baselines.images_sha256, name, sha256)
        elif stored is None:
            baselines.notes.append(f"{name}: no stored checksum for this kind of machine")
        elif sha256 != stored:
            pytest.fail(
                f"{name}: SHA-256 {sha256}, stored for this kind of machine is {stored}; {ADVICE}",
                pytrace=False,
            )


def _shown(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
