"""Functions for notebooks: `cmrepro.load`, `sample`, `evaluate`, and tables as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmrepro.records import FOLDER, RunRecord, SampleProvenance, read_records
from cmrepro.report.results import results_rows
from cmrepro.report.tables import claims_rows, deviations_rows
from cmrepro.training.recipes import table3_rows

if TYPE_CHECKING:
    from cmrepro.checkpoints.load import CheckpointModel

# Functions that need torch import it when they are called; tables do without.


def load(checkpoint: str | Path, device: str = "cpu") -> CheckpointModel:
    """The model of a bundled or released checkpoint's name, or of a path, in evaluation mode.

    `model(x_t, t, labels=None)` is f(x_t, t), or D(x_t, t) of an EDM teacher; (B, 3, H, W) in
    [-1, 1]. `model.info` is the checkpoint's header.
    """
    from cmrepro.checkpoints.load import load_model

    return load_model(checkpoint, device)


def sample(
    model: CheckpointModel, steps: int | Sequence[float] = 1, num_images: int = 16, seed: int = 0
) -> NDArray[np.uint8]:
    """Images uint8 (N, H, W, 3) of a model from `load`; image i depends on (seed, i) alone.

    `steps` are 1, 2, or all times of Algorithm 1; for an EDM teacher the points of Heun's grid.
    """
    from cmrepro import sampling

    settings = sampling.sampler_settings(model.info, steps)
    return sampling.sample(model, settings, num_images, seed, model.image_size).stages[-1]


def evaluate(
    images: NDArray[np.uint8] | str | Path,
    protocol: str = "embedded",
    num_images: int | None = None,
    name: str = "images",
) -> RunRecord:
    """The record of a sample set, as `cmrepro evaluate` writes it.

    `images` are uint8 (N, H, W, 3), whose name in the record is `name`, or the path of an .npz,
    folder or zip. The first `num_images` are scored; by default as many as the protocol needs.
    """
    from cmrepro.data import ImageDataset, open_images
    from cmrepro.experiments import run
    from cmrepro.metrics.extractors import check_images
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.sampling import read_provenance

    if isinstance(images, str | Path):
        source = open_images(images)
        samples = read_provenance(Path(images), source)
    else:
        check_images(images)
        source, samples = ImageDataset(name, images), SampleProvenance(model=name)
    [record] = run.evaluate(source, [load_protocol(protocol)], samples, num_images=num_images)
    return record


def table3(variant: str = "paper") -> pd.DataFrame:
    """Table 3 from the recipes; variant "paper", "released" or "both"."""
    return pd.DataFrame(table3_rows(variant))


def claims() -> pd.DataFrame:
    """Every number and ordering of the paper that this suite can test."""
    return pd.DataFrame(claims_rows())


def deviations() -> pd.DataFrame:
    """Deviations of the official code from the paper."""
    return pd.DataFrame(deviations_rows()).astype({"row": "Int64"})


def results(folder: str | Path = ".") -> pd.DataFrame:
    """Mean and interval over seeds of the records in folder/results/records."""
    rows = results_rows(read_records(Path(folder) / FOLDER))
    return pd.DataFrame(rows).astype({"nfe": "Int64"})
