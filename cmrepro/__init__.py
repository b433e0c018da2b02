"""Reproducibility benchmark suite for Consistency Models (Song et al., ICML 2023).

    model = cmrepro.load("demo-cifar10-cd")  # or cmrepro.wrap(module, image_size=32)
    images = cmrepro.sample(model, steps=2, num_images=16, seed=0)
    record = cmrepro.evaluate(images, protocol="embedded", num_images=16)

Names are resolved on first use, so that `import cmrepro` loads nothing heavy.
"""

# ruff: noqa: F403, F405

import os
from typing import TYPE_CHECKING

# OpenMP threads that wait busily take the cores from each other on a machine under load. The
# variable is read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "claims",
    "deviations",
    "edit",
    "evaluate",
    "load",
    "report",
    "results",
    "sample",
    "save",
    "table3",
    "wrap",
]

if TYPE_CHECKING:
    from cmrepro.api import *
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            from cmrepro import api

            return globals().get(name) or getattr(api, name)  # `report` is a package too
        raise AttributeError(f"module 'cmrepro' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
