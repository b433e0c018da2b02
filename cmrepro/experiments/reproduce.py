"""The main job: a suite of models sampled and scored over seeds, into results/."""

import time
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmrepro.checkpoints.io import load_model
from cmrepro.experiments.run import evaluate, sampled_origin
from cmrepro.experiments.sampling import sample, sampler_settings
from cmrepro.files import atomic_path, make_folder
from cmrepro.metrics.protocols import load_protocol
from cmrepro.names import unknown
from cmrepro.records import RunRecord, write_record

GRID_ROWS, GRID_COLUMNS = 5, 12
GRID_SCALE = 2  # screen pixels an image pixel, so that 32 px images can be seen


@dataclass(frozen=True)
class Suite:
    """What the main job runs.

    Attributes:
        protocol: Name of the protocol.
        num_images: Images a seed and model.
        seeds: Number of seeds: 0, 1, …
        steps: Evaluations of the network; images are scored after each.
        checkpoints: Bundled names or paths.
    """

    protocol: str
    num_images: int
    seeds: int
    steps: int
    checkpoints: tuple[str, ...]


def load_suite(dataset: str, profile: str) -> Suite:
    """The suite of a data set and profile in suites.toml.

    Raises:
        ValueError: Unknown data set or profile.
    """
    tables = tomllib.loads(resources.files(__package__).joinpath("suites.toml").read_text())
    if dataset not in tables:
        raise ValueError(unknown("data set to reproduce", dataset, tables))
    if profile not in tables[dataset]:
        raise ValueError(unknown("profile", profile, tables[dataset]))
    fields: dict[str, Any] = tables[dataset][profile]
    return Suite(**{**fields, "checkpoints": tuple(fields["checkpoints"])})


def reproduce(suite: Suite, out: Path, num_images: int, seeds: int) -> list[RunRecord]:
    """Sample every model of `suite`, score after each evaluation, write records and grids.

    Images of n steps are stage n of the same sampling, so that fewer steps cost nothing more.
    Writes out/results/records/*.json and out/results/samples/*.png (seed 0).

    Args:
        suite: From `load_suite`.
        out: Folder that gets `results`.
        num_images: Images a model and seed.
        seeds: Number of seeds, from 0 on.

    Raises:
        ValueError: A checkpoint, protocol or reference cannot be used, or `out` not written.
    """
    if num_images < 1 or seeds < 1:
        raise ValueError(f"got {num_images} images and {seeds} seeds; allowed is 1 or more each")
    protocol = load_protocol(suite.protocol)
    make_folder(out / "results")  # refuse a bad folder before the work, not after
    records = []
    for name in suite.checkpoints:
        model = load_model(name)
        settings = sampler_settings(model.info, suite.steps)
        for seed in range(seeds):
            start = time.perf_counter()
            samples = sample(
                model,
                settings,
                num_images,
                seed,
                model.image_size,
                progress=f"{model.path.stem} seed {seed}",
            )
            sampling_s = round(time.perf_counter() - start, 2)
            for steps, images in enumerate(samples.stages, 1):
                origin = sampled_origin(model, settings.first(steps), seed, samples.noise_sha256)
                record = evaluate(
                    images,
                    protocol,
                    origin,
                    num_images=num_images,
                    durations_s={"sampling_all_steps": sampling_s},
                )
                write_record(record, out / "results" / "records")
                records.append(record)
                if seed == 0:
                    grid = f"{record.model}_nfe{steps}.png"
                    write_grid(out / "results" / "samples" / grid, images)
    return records


def write_grid(path: Path, images: NDArray[np.uint8]) -> None:
    """The first images as one PNG of `GRID_ROWS` x `GRID_COLUMNS` (or fewer)."""
    columns = min(GRID_COLUMNS, len(images))
    rows = min(GRID_ROWS, len(images) // columns)
    tiles = images[: rows * columns]
    _, height, width, channels = tiles.shape
    grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    enlarged = grid.repeat(GRID_SCALE, axis=0).repeat(GRID_SCALE, axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged).save(temporary, format="PNG")
