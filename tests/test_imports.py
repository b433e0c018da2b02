"""The import order of the package, read from its source.

`records, paper, consistency, networks, datasets, metrics < checkpoints < training, experiments
< report < doctor < commands < cli`: a module imports only from its left, the six leaves do not
import one another, and the code that measures cannot see the numbers it is meant to find.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "cmrepro"

# Used by every part and importing none.
BASE = frozenset({"files", "names", "npz"})
LEAVES = frozenset({"records", "paper", "consistency", "networks", "datasets", "metrics"})
MEASURING = LEAVES - {"paper"}
EVERYTHING = (
    BASE
    | LEAVES
    | {"processes", "grids", "checkpoints", "training", "experiments", "report", "doctor"}
    | {"commands", "api", "cli"}
)

# part -> the other parts it may import.
ALLOWED: dict[str, frozenset[str]] = {
    **dict.fromkeys(BASE, frozenset()),
    **dict.fromkeys(LEAVES, BASE),
    "processes": frozenset(),
    "grids": BASE,
    "metrics": BASE | {"processes"},
    "checkpoints": BASE | MEASURING,  # experiments would see the paper through it
    "training": BASE | LEAVES | {"checkpoints", "grids", "processes"},
    "experiments": BASE | MEASURING | {"checkpoints", "grids", "processes"},
    "report": BASE | {"records", "paper"},
    "doctor": EVERYTHING - {"commands", "api", "cli"},
    "commands": EVERYTHING - {"api", "cli"},
    "api": EVERYTHING - {"commands", "cli"},
    "cli": EVERYTHING,
    "__init__": EVERYTHING,
    "__main__": EVERYTHING,
}

# Tables, claims and the report work where torch is not installed; these packages need it.
WITHOUT_TORCH = BASE | {"records", "paper", "report"}
TORCH = frozenset(
    {
        "cleanfid",
        "diffusers",
        "efficientnet_lite_pytorch",
        "lpips",
        "torch",
        "torch_fidelity",
        "torchvision",
    }
)
STANDARD_LIBRARY_ONLY = frozenset({"names", "records"})


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a module imports, in functions too.

    Args:
        source: the text of the module.
        package: dotted name of the package that holds the module, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = [node.module] if node.module else []
                if node.level:
                    parents = package.split(".")
                    base = parents[: len(parents) - node.level + 1] + base
                yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, package + name if name.startswith(".") else name


def violations(path: pathlib.PurePath, source: str) -> list[str]:
    """One line for each import that the order forbids.

    Args:
        path: of the module, relative to the package.
        source: its text.
    """
    part = path.parts[0].removesuffix(".py")
    if part not in ALLOWED:
        return [f"cmrepro/{path}: {part!r} is not in the layout; give it a row in ALLOWED"]
    found = []
    package = ".".join(["cmrepro", *path.parts[:-1]])
    for line, name in imported_names(source, package):
        root, _, rest = name.partition(".")
        where = f"cmrepro/{path}:{line}: {part} imports {name}"
        if root == "cmrepro":
            if rest == "__version__":
                continue
            # A name that is no part is one that cmrepro/__init__.py hands on from anywhere.
            target = rest.partition(".")[0]
            target = target if target in ALLOWED else "__init__"
            if target != part and target not in ALLOWED[part]:
                found.append(f"{where}, but may import only {sorted(ALLOWED[part])}")
        elif part in WITHOUT_TORCH and root in TORCH:
            found.append(f"{where}, but has to work without torch")
        elif part in STANDARD_LIBRARY_ONLY and root not in sys.stdlib_module_names:
            found.append(f"{where}, but uses the standard library only")
    return found


def test_imports_follow_the_order() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    found = [
        line
        for path in paths
        for line in violations(path.relative_to(PACKAGE), path.read_text(encoding="utf-8"))
    ]
    assert not found, "imports against the order:\n" + "\n".join(found)


def test_every_part_of_the_table_exists() -> None:
    """A row without a module would leave a renamed part unchecked."""
    parts = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")
    }
    assert set(ALLOWED) - parts == set()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("metrics/definitions.py", "from cmrepro.paper import table1"),
        ("metrics/definitions.py", "from ..paper import table1"),
        ("metrics/definitions.py", "from .. import paper"),
        ("metrics/definitions.py", "def f():\n    import cmrepro.networks.adm as adm"),
        ("metrics/inception/blocks.py", "from ...consistency import solvers"),
        ("metrics/definitions.py", "import importlib\nimportlib.import_module('cmrepro.paper')"),
        ("datasets.py", "from .records import RunRecord"),
        ("datasets.py", "from cmrepro import load"),
        ("datasets.py", "from cmrepro import *"),
        ("datasets.py", "import cmrepro"),
        ("networks/__init__.py", "from ..datasets import open_images"),
        ("consistency/losses.py", "from cmrepro import networks"),
        ("names.py", "from cmrepro.records import RunRecord"),
        ("checkpoints/load.py", "from ..training import recipes"),
        ("checkpoints/load.py", "from ..paper import claims"),
        ("training/loop.py", "from cmrepro.experiments.sampling import sample"),
        ("experiments/run.py", "from cmrepro.training.recipes import RECIPES"),
        ("experiments/run.py", "from typing import *\nfrom cmrepro.paper import claims"),
        ("experiments/run.py", "from cmrepro import report"),
        ("report/render.py", "from cmrepro.metrics import protocols"),
        ("report/render.py", "def f():\n    import torch.nn.functional as F"),
        ("paper/__init__.py", "from torchvision import transforms"),
        ("records.py", "import numpy as np"),
        ("utils.py", "import math"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(violations(pathlib.PurePosixPath(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "metrics/definitions.py",
            "import torch\nfrom . import features\nfrom .features import f",
        ),
        ("metrics/inception/blocks.py", "from ..features import f\nfrom ...names import unknown"),
        ("datasets.py", "from cmrepro import __version__, names"),
        (
            "checkpoints/load.py",
            "from ..networks.adm import UNet\nfrom cmrepro import consistency",
        ),
        (
            "training/loop.py",
            "from cmrepro.checkpoints import load\nfrom ..metrics import features",
        ),
        ("experiments/run.py", "from ..checkpoints import load\nfrom ..records import RunRecord"),
        ("report/tables.py", "import pandas\nfrom ..paper import claims\nfrom .. import records"),
        ("cli.py", "def f():\n    from cmrepro import report, training"),
        ("records.py", "import json\nfrom collections.abc import Mapping"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    assert violations(pathlib.PurePosixPath(path), source) == []
