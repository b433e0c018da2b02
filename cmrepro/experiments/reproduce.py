"""The main job: a suite of models sampled and scored over seeds, into results/."""

import time
from pathlib import Path

from cmrepro.checkpoints.load import load_model
from cmrepro.data import ImageDataset
from cmrepro.experiments.run import evaluate, write_results
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import RunRecord
from cmrepro.sampling import sample, sample_provenance, sampler_settings
from cmrepro.schema import Positive, Struct, lookup, read_toml


class Suite(Struct, frozen=True, kw_only=True):
    """A set of models with a protocol."""

    protocol: str  # name of the protocol
    num_images: Positive  # images a seed and model
    seeds: Positive  # number of seeds: 0, 1, …
    checkpoints: dict[str, Positive]  # steps by name or path, each of them scored


def load_suite(dataset: str, profile: str) -> Suite:
    """The suite of a data set and profile in suites.toml."""
    suites = read_toml(dict[str, dict[str, Suite]], Path(__file__).with_name("suites.toml"))
    profiles = lookup("data set to reproduce", dataset, suites)
    if profile not in profiles:
        allowed = " or ".join(profiles)
        raise ValueError(f"{dataset} has no profile '{profile}'; give --profile {allowed}")
    return profiles[profile]


def reproduce(
    suite: Suite, out: Path, device: str = "cpu", overwrite: bool = False
) -> list[RunRecord]:
    """Sample every model of `suite`, score after each evaluation, write records and grids.

    Images of n steps are stage n of the same sampling, so that fewer steps cost nothing more.
    Writes out/results/records/*.json and out/results/samples/*.png (seed 0).
    """
    protocol = load_protocol(suite.protocol)
    records: list[RunRecord] = []
    for name, nfe in suite.checkpoints.items():
        model = load_model(name, device)
        settings = sampler_settings(model.info, nfe, protocol.to_uint8)
        for seed in range(suite.seeds):
            start = time.perf_counter()
            progress = f"{model.path.stem} seed {seed}"
            samples = sample(model, settings, suite.num_images, seed, model.image_size, progress)
            sampling_s = round(time.perf_counter() - start, 2)
            for stage, pixels in enumerate(samples.stages, 1):
                images = ImageDataset(model.path.stem, pixels)
                records += evaluate(
                    images,
                    [protocol],
                    sample_provenance(model, settings, seed, samples, stage),
                    num_images=suite.num_images,
                    device=device,
                    progress=True,
                    durations_s={"sampling_all_steps": sampling_s},
                )
                write_results(records[-1], images, out, overwrite)
    return records
