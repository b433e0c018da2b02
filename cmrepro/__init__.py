"""Reproducibility benchmark suite for Consistency Models (Song et al., ICML 2023).

    model = cmrepro.load("demo-cifar10-cd")
    images = cmrepro.sample(model, steps=2, num_images=16, seed=0)
    record = cmrepro.evaluate(images, protocol="embedded", num_images=16)

Names are resolved on first use, so that `import cmrepro` loads nothing heavy.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["claims", "deviations", "evaluate", "load", "results", "sample", "table3"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cmrepro import api

        return getattr(api, name)
    raise AttributeError(f"module 'cmrepro' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
