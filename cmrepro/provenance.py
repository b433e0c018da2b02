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
    """The processor with what the last bits of results depend on, and the number of usable cores.

    Processors of one name differ in their instructions: family and model, where Linux says them,
    and the vector instructions that PyTorch uses.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = said.get("model name") or platform.processor() or platform.machine()
    kind = [f"{key} {said[key]}" for key in ("cpu family", "model") if key in said]
    kind.append(torch.backends.cpu.get_cpu_capability())
    return f"{name} ({', '.join(kind)}), {cores} cores"
