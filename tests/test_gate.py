"""The regression gate of benchmarks/: what it lets pass, what it finds, what it says.

The quick tests run the gate on work whose CPU time is known exactly. The marked ones plant a
slow-down of 20 % in the sampler, in a training step and in a metric, and a change of 0.5 % in a
score, and count how often the gate finds them beside other work on the machine.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"

# Work that takes exactly as much CPU time as it is told.
WORK = """
import hashlib, time
import pytest

def burn(milliseconds):
    end = time.process_time() + milliseconds / 1000
    while time.process_time() < end:
        pass

def test_work(benchmark, gate):
    benchmark.pedantic(burn, (1,), rounds=2)
    gate.ratio("work", lambda: burn({ours}), lambda: burn(10), at_most=1.5)
    gate.score("value", {value})
    gate.images("pictures", hashlib.sha256(b"{images}").hexdigest())

@pytest.mark.slow_bench
def test_full(benchmark, gate):
    benchmark(int)
"""
USUAL = {"ours": 10, "value": 3.0, "images": "a"}

Result = subprocess.CompletedProcess[str]


def run_pytest(*arguments: str | Path) -> Result:
    """Pytest in a process of its own, in one thread; the planting plugin can be imported."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "COLUMNS": "200",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other plugins take longer than the work
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "pytest_benchmark.plugin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


class Work:
    """A folder with the gate and one benchmark."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.baselines = folder, folder / "baselines"
        for name in ("conftest.py", "gate.py"):
            shutil.copy(BENCHMARKS / name, folder)

    def run(self, *options: str, **changes: object) -> Result:
        (self.folder / "test_work.py").write_text(WORK.format(**{**USUAL, **changes}))
        return run_pytest(self.folder, "--baselines", self.baselines, *options)

    @property
    def machine_file(self) -> Path:
        [path] = (p for p in self.baselines.iterdir() if p.name != "scores.json")
        return path


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Work:
    work = Work(tmp_path_factory.mktemp("work"))
    assert "CHANGELOG.md" in work.run("--update").stdout
    return work


@pytest.fixture
def work(tmp_path: Path, updated: Work) -> Work:
    """With baselines of the usual work, which the test may change."""
    shutil.copytree(updated.baselines, tmp_path / "baselines")
    return Work(tmp_path)


def test_unchanged_work_passes_and_changes_are_found(work: Work) -> None:
    assert work.run().returncode == 0
    assert work.run(ours=10.8).returncode == 0  # below the tolerance of 10 %
    assert work.run(value=3.0002).returncode == 0  # 7e-5, below 1e-4
    for changes, said in [
        ({"ours": 12}, "times the CPU time of the other side"),
        ({"value": 3.015}, "value: 3.015, stored is 3 (+0.500%)"),
        ({"value": 3.0004}, "value: 3.0004"),
        ({"images": "b"}, "pictures: SHA-256"),
    ]:
        found = work.run(**changes)
        assert found.returncode == 1, changes
        assert said in found.stdout
        assert "if that is meant: pytest benchmarks --update" in found.stdout
    faster = work.run(ours=8)
    assert faster.returncode == 0
    assert "faster than its 1.0; update" in faster.stdout


def test_update_writes_the_machine_and_asks_for_the_changelog(work: Work) -> None:
    stored = json.loads(work.machine_file.read_text())
    assert stored["ratios"]["work"] == pytest.approx(1, abs=0.03)
    assert stored["machine"].keys() >= {"cpu", "cores", "torch"}
    again = work.run("--update", ours=12, value=3.015)
    assert again.returncode == 0
    assert "CHANGELOG.md" in again.stdout
    assert "value: 3 -> 3.015" in again.stdout
    assert json.loads((work.baselines / "scores.json").read_text()) == {"value": 3.015}
    assert work.run(ours=12, value=3.015).returncode == 0


def test_an_unknown_machine_is_judged_by_bounds_and_scores(work: Work) -> None:
    work.machine_file.unlink()
    known = work.run(ours=12, images="b")
    assert known.returncode == 0
    assert "no baseline for this kind of machine" in known.stdout
    assert "judged by its bound 1.5 only" in known.stdout
    assert work.run(ours=16).returncode == 1
    assert work.run(value=3.015).returncode == 1
    (work.baselines / "scores.json").unlink()
    assert "value has no stored value" in work.run().stdout


def test_options_of_pytest_benchmark_and_full_sizes(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    kept = [f"--benchmark-storage={tmp_path / 'kept'}"]
    saved = work.run(f"--benchmark-json={path}", "--benchmark-autosave", *kept)
    assert "1 passed, 1 deselected" in saved.stdout
    results = json.loads(path.read_text())
    [benchmark] = results["benchmarks"]
    assert benchmark["extra_info"]["work"] == pytest.approx(1, abs=0.05)
    assert results["machine_info"]["cmrepro"]["torch"]
    compared = work.run("--full", "--benchmark-compare", *kept)
    assert "2 passed" in compared.stdout
    assert "(0001_" in compared.stdout
    # Where nothing is timed, nothing is too slow.
    assert work.run("--benchmark-disable", ours=20).returncode == 0


FILES = {
    "sampler": ["test_sampling_speed.py"],
    "step": ["test_training_speed.py", "-k", "bare_passes"],
    "metric": ["test_definitions_speed.py", "-k", "frechet"],
    "score": ["test_scores.py"],
}
EVERYTHING = [BENCHMARKS / arguments[0] for arguments in FILES.values()]


@contextlib.contextmanager
def other_work() -> Iterator[None]:
    """Inside it every core has another process that computes and moves memory."""
    code = "import numpy as np\nx = np.ones((1500, 1500))\nwhile True: x = x @ x / 1500"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baselines of this machine."""
    folder = tmp_path_factory.mktemp("baselines")
    updated = run_pytest(*EVERYTHING, "--update", "--baselines", folder)
    assert updated.returncode == 0, updated.stdout
    return folder


@pytest.mark.gate
@pytest.mark.parametrize("plant", FILES)
def test_planted_changes_are_found_in_five_of_five_runs(stored: Path, plant: str) -> None:
    name, *selection = FILES[plant]
    found = []
    with other_work():
        for _ in range(5):
            run = run_pytest(
                BENCHMARKS / name,
                *selection,
                "--baselines",
                stored,
                "-p",
                "planted",
                "--plant",
                plant,
            )
            assert "failed" in run.stdout or run.returncode == 0, run.stdout + run.stderr
            found.append("if that is meant" in run.stdout)
    print(f"{plant}: found in {sum(found)} of 5")
    assert all(found)


@pytest.mark.gate
def test_unchanged_code_passes_in_ten_of_ten_runs(stored: Path) -> None:
    with other_work():
        runs = [run_pytest(*EVERYTHING, "--baselines", stored) for _ in range(10)]
    failed = [run.stdout for run in runs if run.returncode]
    print(f"silent in {10 - len(failed)} of 10")
    assert not failed, "\n".join(failed)
