"""Options, fixture and summary of the regression gate. Everything runs in one thread."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import pytest
from gate import Baselines, Gate
from pytest_benchmark.fixture import BenchmarkFixture

FOLDER = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
BASELINES = pytest.StashKey[Baselines]()


def machine() -> dict[str, str]:
    """Properties that ratios and the last bits of images depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cpu_family_and_model": f"{fields.get('cpu family', '?')}.{fields.get('model', '?')}",
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }


def kind_of(machine: dict[str, str]) -> str:
    """Name of the kind of machine: processor, cores, and the release of torch."""
    release = ".".join(machine["torch"].split(".")[:2])
    model = machine["cpu_family_and_model"]
    text = f"{machine['cpu']} {model} {machine['cores']} cores torch {release}"
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("regression gate")
    group.addoption(
        "--update", action="store_true", help="store this machine's ratios and images as baselines"
    )
    group.addoption(
        "--update-scores", action="store_true", help="store the scores, which all machines share"
    )
    group.addoption("--full", action="store_true", help="run the full sizes too")
    group.addoption("--baselines", type=Path, default=FOLDER, help="folder of the baselines")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for library in ("OMP", "MKL", "OPENBLAS"):  # read when numpy and torch are imported
        os.environ[f"{library}_NUM_THREADS"] = "1"
    config.addinivalue_line("markers", "slow_bench: of full size; only with --full")
    description = machine()
    config.stash[BASELINES] = Baselines(
        config.getoption("--baselines"),
        kind_of(description),
        description,
        config.getoption("--update"),
        config.getoption("--update-scores"),
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    slow = [item for item in items if item.get_closest_marker("slow_bench")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture
def gate(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Gate:
    return Gate(benchmark, request.config.stash[BASELINES])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    baselines = config.stash[BASELINES]
    terminalreporter.section("regression gate")
    if (baselines.update or baselines.update_scores) and not config.getoption("collectonly"):
        baselines.write()
        terminalreporter.line(
            "a change of a score, of images or of a speed needs a line in CHANGELOG.md with both "
            "values:"
        )
    elif not baselines.known:
        terminalreporter.line(
            f"no baseline for this kind of machine ({baselines.kind}): speeds are compared with "
            "their bounds only; pytest benchmarks --update makes one"
        )
    if names := baselines.disturbed:
        terminalreporter.line(
            f"wall-clock time of {len(names)} ratios not judged, other processes took the "
            f"processor: {', '.join(names)}"
        )
    for note in baselines.notes:
        terminalreporter.line(note)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    machine_info["cmrepro"] = machine()
