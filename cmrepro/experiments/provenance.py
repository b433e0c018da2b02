"""Where a result comes from: code, versions, machine, command."""

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cmrepro import __version__

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "torch-fidelity", "clean-fid", "safetensors")


@functools.cache
def provenance() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process.

    `commit` is None where the package does not run from a git checkout (an installed wheel);
    `dirty` then too.
    """
    commit, dirty = git_state()
    return {
        "command": shlex.join(["cmrepro", *sys.argv[1:]]),
        "cmrepro": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that holds this package, and whether its code has been changed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    git = ["git", "-C", str(root)]
    # A folder of another user, as in many containers, is no reason to lose the commit.
    git += ["-c", f"safe.directory={root}"]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "cmrepro", "pyproject.toml", "constraints.txt"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes.strip())


def cpu_name() -> str:
    """The processor's model and number of usable cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {cores} cores"
