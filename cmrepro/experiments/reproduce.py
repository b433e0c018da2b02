"""The main job: a suite of models sampled and scored over seeds, into results/."""

import time
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import load_model
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.data import ImageDataset
from cmrepro.experiments.run import evaluate, sampled_origin
from cmrepro.files import make_folder
from cmrepro.grids import write_grid
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records3 import FOLDER, RunRecord, write_record
from cmrepro.sampling import sample, sampler_settings
from cmrepro.schema import unknown


@dataclass(frozen=True)
class Suite:
    """What the main job runs.

    Attributes:
        protocol: Name of the protocol.
        num_images: Images a seed and model.
        seeds: Number of seeds: 0, 1, …
        checkpoints: Names or paths, each with its evaluations of the network; images are scored
            after each evaluation.
    """

    protocol: str
    num_images: int
    seeds: int
    checkpoints: dict[str, int]


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
    return Suite(**tables[dataset][profile])


def reproduce(suite: Suite, out: Path, device: str = "cpu") -> list[RunRecord]:
    """Sample every model of `suite`, score after each evaluation, write records and grids.

    Images of n steps are stage n of the same sampling, so that fewer steps cost nothing more.
    Released checkpoints are fetched and converted where that has not been done yet. Writes
    out/results/records/*.json and out/results/samples/*.png (seed 0).

    Args:
        suite: From `load_suite`, or with another number of images or seeds.
        out: Folder that gets `results`.
        device: Where networks run.

    Raises:
        ValueError: A checkpoint, protocol or reference cannot be used, or `out` not written.
    """
    if suite.num_images < 1 or suite.seeds < 1:
        raise ValueError(
            f"got {suite.num_images} images and {suite.seeds} seeds; allowed is 1 or more each"
        )
    protocol = load_protocol(suite.protocol)
    make_folder(out / "results")  # refuse a bad folder before the work, not after
    records = []
    for name, evaluations in suite.checkpoints.items():
        released = released_checkpoints().get(name)
        if released and not released.converted.is_file():
            convert(name)
        model = load_model(name, device)
        settings = sampler_settings(model.info, evaluations, protocol.to_uint8)
        for seed in range(suite.seeds):
            start = time.perf_counter()
            progress = f"{model.path.stem} seed {seed}"
            samples = sample(model, settings, suite.num_images, seed, model.image_size, progress)
            sampling_s = round(time.perf_counter() - start, 2)
            for steps, images in enumerate(samples.stages, 1):
                origin = sampled_origin(model, settings.first(steps), seed, samples)
                [record] = evaluate(
                    ImageDataset(model.path.stem, images),
                    [protocol],
                    origin,
                    num_images=suite.num_images,
                    device=device,
                    durations_s={"sampling_all_steps": sampling_s},
                )
                write_record(record, out / FOLDER)
                records.append(record)
                if seed == 0:
                    grid = f"{record.model}_nfe{steps}.png"
                    write_grid(out / "results" / "samples" / grid, images)
    return records
