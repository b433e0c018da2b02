"""Functions for notebooks: `load` or `wrap`, `sample`, `evaluate`, `save`, `report`, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmrepro.records import (
    FOLDER,
    CheckpointInfo,
    RunRecord,
    SampleProvenance,
    Stated,
    read_records,
)
from cmrepro.report import report as report
from cmrepro.report.results import claims_rows, interval_ends, results_rows
from cmrepro.report.tables import deviations_rows
from cmrepro.settings import EditTask
from cmrepro.training.recipes import table3_rows

if TYPE_CHECKING:
    from torch import nn

    from cmrepro.checkpoints.load import CheckpointModel, WrappedModel

# Functions that need torch import it when they are called; tables do without.


Source = NDArray[np.uint8] | str | Path


class SampledImages(np.ndarray[Any, np.dtype[np.uint8]]):
    """Images uint8 (N, H, W, 3) of a model; a slice or copy of them has no provenance."""

    provenance: SampleProvenance | None = None


def load(checkpoint: str | Path, device: str = "cpu") -> CheckpointModel:
    """The model of a bundled or released checkpoint's name, or of a path, in evaluation mode.

    `model(x_t, t, labels=None)` is f(x_t, t), or D(x_t, t) of an EDM teacher; (B, 3, H, W) in
    [-1, 1]. `model.info` is the checkpoint's header.
    """
    from cmrepro.checkpoints.load import load_model

    return load_model(checkpoint, device)


def wrap(
    module: nn.Module,
    *,
    image_size: int,
    num_classes: int = 0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    two_step_time: float | None = None,
    **stated: Unpack[Stated],
) -> WrappedModel:
    """A consistency function f(x_t, t) of one's own, for `sample`, in evaluation mode.

    `module(x_t, t)`, or with classes `module(x_t, t, labels)`, gets noisy images x_t = x + t z
    (B, 3, H, W) and t (B,), sigma_min < t <= sigma_max, and returns images in [-1, 1]. `stated`
    are `model`, its name (by default the module's class), and of its training `dataset`,
    `images_seen` and `batch_size`.
    """
    from cmrepro.checkpoints.load import WrappedModel

    provenance = SampleProvenance(model=type(module).__name__).stating(**stated)
    info = CheckpointInfo(
        network=type(module).__name__,
        parameterization="boundary",
        sigma_data=0.5,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        two_step_time=two_step_time,
    )
    return WrappedModel(module, image_size, num_classes, info, provenance).eval()


def sample(
    model: CheckpointModel | WrappedModel,
    steps: int | Sequence[float] = 1,
    num_images: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> SampledImages:
    """Images uint8 (N, H, W, 3) of a model; image i depends on (seed, i) alone.

    `steps` are 1, 2, or all times of Algorithm 1; for an EDM teacher the points of Heun's grid.
    """
    from cmrepro import sampling

    settings = sampling.sampler_settings(model.info, steps)
    label = "sampling" if progress else None
    samples = sampling.sample(model, settings, num_images, seed, model.image_size, label)
    images = samples.stages[-1].view(SampledImages)
    images.provenance = samples.provenances[-1]
    return images


def edit(
    model: CheckpointModel | WrappedModel,
    images: NDArray[np.uint8],
    task: EditTask,
    seed: int = 0,
    **settings: Any,
) -> NDArray[np.uint8]:
    """Images edited by Algorithm 4, uint8 (N, H, W, 3); tasks and settings as `edit_images`."""
    from cmrepro.experiments.edit import edit_images

    return edit_images(model, images, task, seed, **settings).outputs


@overload
def evaluate(
    images: Source,
    protocol: str | Path = "embedded",
    num_images: int | None = None,
    *,
    reference: str | Path | None = None,
    device: str = "cpu",
    intervals: bool = False,
    progress: bool = False,
    **stated: Unpack[Stated],
) -> RunRecord: ...
@overload
def evaluate(
    images: Source,
    protocol: list[str] | list[Path],
    num_images: int | None = None,
    *,
    reference: list[str] | list[Path] | None = None,
    device: str = "cpu",
    intervals: bool = False,
    progress: bool = False,
    **stated: Unpack[Stated],
) -> list[RunRecord]: ...
def evaluate(
    images: Source,
    protocol: str | Path | list[str] | list[Path] = "embedded",
    num_images: int | None = None,
    *,
    reference: str | Path | list[str] | list[Path] | None = None,
    device: str = "cpu",
    intervals: bool = False,
    progress: bool = False,
    **stated: Unpack[Stated],
) -> RunRecord | list[RunRecord]:
    """The record of a sample set; those of a list of protocols, in one pass.

    `images` are uint8 (N, H, W, 3) or the path of an .npz, folder or zip. Those of `sample`, and
    files with their provenance beside them, know their model; of others `stated` says `model`,
    `nfe`, `seed`, `times`, and of its training `dataset`, `images_seen`, `batch_size`. The first
    `num_images` are scored; by default as many as the protocol needs. `intervals` adds 95 %
    intervals.
    """
    from cmrepro.data import ImageDataset, open_images
    from cmrepro.experiments import run
    from cmrepro.metrics.extractors import check_images
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.sample_sets import read_provenance

    if isinstance(images, str | Path):
        source = open_images(images)
        samples = read_provenance(Path(images), source)
    else:
        check_images(images)
        source = ImageDataset("images", np.asarray(images))
        samples = getattr(images, "provenance", None) or SampleProvenance(model="images")
    names = protocol if isinstance(protocol, list) else [protocol]
    references = reference if isinstance(reference, list) else [reference] * len(names)
    records = run.evaluate(
        source,
        [load_protocol(name) for name in names],
        samples.stating(**stated),
        references=references,
        num_images=num_images,
        device=device,
        intervals=intervals,
        progress=progress,
    )
    return records if isinstance(protocol, list) else records[0]


def save(
    record: RunRecord,
    images: NDArray[np.uint8] | None = None,
    folder: str | Path = ".",
    overwrite: bool = False,
) -> Path:
    """Write a record to folder/results/records, where `results` and `report` find it; its path.

    With `images` of seed 0, a grid of the first of them is written for the report too.
    """
    from cmrepro.data import ImageDataset
    from cmrepro.experiments.run import write_results

    source = None if images is None else ImageDataset(record.model, np.asarray(images))
    return write_results(record, source, Path(folder), overwrite)


def table3(variant: str = "paper") -> pd.DataFrame:
    """Table 3 from the recipes; variant "paper", "released" or "both"."""
    return pd.DataFrame(table3_rows(variant))


def claims(folder: str | Path = ".") -> pd.DataFrame:
    """Every claim of the paper that this suite tests, by the records in folder/results/records."""
    found = Path(folder) / FOLDER
    return pd.DataFrame(claims_rows(read_records(found) if found.is_dir() else []))


def deviations() -> pd.DataFrame:
    """Deviations of the official code from the paper."""
    return pd.DataFrame(deviations_rows()).astype({"row": "Int64"})


def results(folder: str | Path = ".") -> pd.DataFrame:
    """Means over seeds of the records in folder/results/records, with 95 % intervals.

    The columns are numbers: e.g. `fid`, and the ends of its interval, `fid_low` and `fid_high`.
    """
    rows = results_rows(read_records(Path(folder) / FOLDER), interval_ends)
    return pd.DataFrame(rows).astype({"nfe": "Int64"})
