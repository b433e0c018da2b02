"""Provenance of a result: code, versions, machine, command."""

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from cmrepro import __version__
from cmrepro.records import Provenance

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "torch-fidelity", "clean-fid", "safetensors")


@functools.cache
def provenance() -> Provenance:
    """Command, commit, versions and hardware of this process."""
    commit, dirty = git_state()
    script = Path(sys.argv[0]).name
    program = ["cmrepro"] if script in ("cmrepro", "__main__.py") else ["python", script]
    words = ["python"] if hasattr(sys, "ps1") else [*program, *sys.argv[1:]]  # not a notebook's
    return Provenance(
        command=shlex.join(words),
        cmrepro=__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        platform=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def git_state() -> tuple[str | None, bool | None]:
    """Commit of this checkout and True if its code is changed; None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None
    # A checkout of another user, as in many containers, is no reason to lose the commit.
    git = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    code = ("cmrepro", "pyproject.toml", "constraints.txt")
    # Git's hooks set GIT_DIR and others, which would name another repository.
    environment = {key: value for key, value in os.environ.items() if key[:4] != "GIT_"}

    def output(*arguments: str) -> str:
        run = subprocess.run([*git, *arguments], env=environment, capture_output=True, check=True)
        return run.stdout.decode().strip()

    try:
        return output("rev-parse", "HEAD"), bool(output("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def cpu_name() -> str:
    """Processor with family, model and PyTorch's vector instructions, and usable cores.

    Processors of one name may differ in these, and then in the last bits of results.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    kind = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    kind.append(torch.backends.cpu.get_cpu_capability())
    return f"{name} ({', '.join(kind)}), {cores} cores"
