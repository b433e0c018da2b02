"""The regression gate of benchmarks/, on work whose CPU time is known exactly.

The marked tests plant a slow-down of 20 % in the sampler, a training step and a metric, and a
change of 0.5 % in a score, and count how often the gate finds them beside other work; and, on a
quiet machine, 50 ms of waiting a batch.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"

# Work that takes exactly the requested CPU time.
WORK = """
import hashlib, time

import gate as module

def burn(milliseconds):
    end = time.process_time() + milliseconds / 1000
    while time.process_time() < end:
        pass

def test_work(benchmark, gate):
    benchmark.pedantic(burn, (1,), rounds=2)
    module.QUIET = {quiet}
    ours = lambda: (burn({ours}), time.sleep({waits}))
    gate.ratio("work", ours, lambda: burn(10), at_most=1.5)
    gate.score("value", {value})
    gate.images("pictures", hashlib.sha256(b"{images}").hexdigest())
"""
# Wall-clock time is judged as if the machine were busy: the tests themselves run beside others.
USUAL = {"ours": 10, "value": 3.0, "images": "a", "waits": 0, "quiet": 0}


def run_pytest(*arguments):
    """Pytest in a process of its own, in one thread; the planting plugin can be imported."""
    environment = {
        **{key: value for key, value in os.environ.items() if "XDIST" not in key},
        "PYTHONPATH": str(Path(__file__).parent),
        "COLUMNS": "200",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other plugins take longer than the work
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "pytest_benchmark.plugin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


class Work:
    """A folder with the gate, one benchmark and baselines of its usual work."""

    def __init__(self, folder):
        self.folder, self.baselines = folder, folder / "baselines"
        for name in ("conftest.py", "gate.py"):
            shutil.copy(BENCHMARKS / name, folder)
        assert self.run("--update", "--update-scores").returncode == 0

    def run(self, *options, **changes):
        (self.folder / "test_work.py").write_text(WORK.format(**{**USUAL, **changes}))
        return run_pytest(self.folder, "--baselines", self.baselines, *options)


def test_unchanged_work_passes_and_changes_are_found(tmp_path):
    work = Work(tmp_path)
    # 8 % slower and 7e-5 of the score: below the tolerances of 10 % and 1e-4.
    assert work.run(ours=10.8, value=3.0002).returncode == 0
    for changes, message in [
        ({"ours": 12}, "times the CPU time of the other side"),
        ({"value": 3.015}, "value: 3.015, stored is 3 (+0.500%)"),
        ({"images": "b"}, "pictures: SHA-256"),
        ({"waits": 0.05, "quiet": 1e9}, "times the wall-clock time of the other side"),
    ]:
        found = work.run(**changes)
        assert found.returncode == 1, changes
        assert message in found.stdout
        assert "pytest benchmarks --update" in found.stdout
    faster = work.run(ours=8, waits=0.05)
    assert faster.returncode == 0
    assert "faster than its baseline" in faster.stdout
    assert "wall-clock time of 1 ratios not judged" in faster.stdout


def test_update_and_an_unknown_machine(tmp_path):
    work = Work(tmp_path)
    [machine_file] = (p for p in work.baselines.iterdir() if p.name != "scores.json")
    # Two loops of 10 ms each.
    assert json.loads(machine_file.read_text())["ratios"]["work"] == pytest.approx(1, abs=0.03)
    # Another machine's scores are compared, within their tolerance, and stay as they are.
    scores = (work.baselines / "scores.json").read_text()
    assert work.run("--update", value=3.0002).returncode == 0
    assert work.run("--update", value=3.015).returncode == 1
    assert (work.baselines / "scores.json").read_text() == scores
    again = work.run("--update-scores", value=3.015)
    assert again.returncode == 0
    assert "CHANGELOG.md" in again.stdout and "value: 3 -> 3.015" in again.stdout
    assert json.loads((work.baselines / "scores.json").read_text()) == {"value": 3.015}
    # Without a baseline of this kind of machine, bounds and scores judge.
    machine_file.unlink()
    unknown = work.run(ours=14, images="b", value=3.015)
    assert unknown.returncode == 0
    assert "no baseline for this kind of machine" in unknown.stdout
    assert work.run(ours=16, value=3.015).returncode == 1
    assert work.run(value=3.0).returncode == 1


FILES = {
    "sampler": ["test_sampling_speed.py"],
    "step": ["test_training_speed.py", "-k", "bare_passes"],
    "metric": ["test_metrics_speed.py", "-k", "frechet"],
    "score": ["test_scores.py"],
}
EVERYTHING = [BENCHMARKS / arguments[0] for arguments in FILES.values()]


@pytest.fixture
def other_work():
    """Another process on every core, which computes and moves memory."""
    code = "import numpy as np\nx = np.ones((1500, 1500))\nwhile True: x = x @ x / 1500"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Baselines of this machine."""
    folder = tmp_path_factory.mktemp("baselines")
    updated = run_pytest(*EVERYTHING, "--update", "--update-scores", "--baselines", folder)
    assert updated.returncode == 0, updated.stdout
    return folder


@pytest.mark.gate
@pytest.mark.usefixtures("other_work")
@pytest.mark.parametrize("plant", FILES)
def test_planted_changes_are_found_in_five_of_five_runs(stored, plant):
    name, *selection = FILES[plant]
    planted = ["--baselines", stored, "-p", "planted", "--plant", plant]
    runs = [run_pytest(BENCHMARKS / name, *selection, *planted) for _ in range(5)]
    assert all("pytest benchmarks --update" in run.stdout for run in runs)


@pytest.mark.gate
@pytest.mark.parametrize("plant", ["sampler", "step"])
def test_planted_waiting_is_found_on_a_quiet_machine(stored, plant):
    name, *selection = FILES[plant]
    planted = ["--baselines", stored, "-p", "planted", "--plant", f"{plant} waits"]
    run = run_pytest(BENCHMARKS / name, *selection, *planted)
    assert "times the wall-clock time of the other side" in run.stdout


@pytest.mark.gate
@pytest.mark.usefixtures("other_work")
def test_unchanged_code_passes_in_ten_of_ten_runs(stored):
    runs = [run_pytest(*EVERYTHING, "--baselines", stored) for _ in range(10)]
    assert not [run.stdout for run in runs if run.returncode]
