"""The main job: a suite of models sampled and scored over seeds, into results/."""

import hashlib
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import field

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.io import read_info
from cmrepro.checkpoints.load import find_checkpoint, load_model
from cmrepro.data.sources import SampleSet
from cmrepro.distributed import broadcast, rank_and_world_size
from cmrepro.experiments.run import evaluate, write_results
from cmrepro.metrics.extractors import weights_file
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.metrics.references import load_reference
from cmrepro.progress import progress_bar
from cmrepro.provenance import provenance
from cmrepro.records import FOLDER, RunRecord, read_record, record_files
from cmrepro.sampling import sample, sampler_settings
from cmrepro.schema import NotNegative, Positive, Struct, lookup, read_toml, to_json
from cmrepro.search import search_time
from cmrepro.settings import Protocol

SAMPLE_SETS = Path("sample-sets")  # below --out


class TrainingPlan(Struct, frozen=True, kw_only=True):
    """One training of a suite, and the steps to sample its model with."""

    recipe: str
    # Other values of recipe fields; "none" for no value
    changes: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None  # a training before it, or a checkpoint's name
    # A model each; seeds of initial weights, order, flips, noise and times
    training_seeds: tuple[NotNegative, ...] = (0,)
    steps: NotNegative = 0  # of sampling, each of them scored; 0 for none

    def __post_init__(self) -> None:
        if len(self.training_seeds) > 1 and self.steps > 1:
            found = f"got steps = {self.steps} for several training_seeds"
            raise ValueError(f"{found}; allowed is 1, as each model has a second time of its own")


class Suite(Struct, frozen=True, kw_only=True):
    """A set of models with a protocol."""

    protocol: str  # name of the protocol
    num_images: Positive  # images a seed and model
    seeds: Positive  # number of seeds of sampling: 0, 1, …
    # Steps by name or path, each of them scored
    checkpoints: dict[str, Positive] = field(default_factory=dict)
    # Other values of recipe fields, of all trainings; a plan's changes override them
    changes: dict[str, Any] = field(default_factory=dict)
    # Trainings by name, before the others
    trainings: dict[str, TrainingPlan] = field(default_factory=dict)


def load_suite(dataset: str, profile: str) -> Suite:
    """The suite of a data set and profile in suites.toml."""
    suites = read_toml(dict[str, dict[str, Suite]], Path(__file__).with_name("suites.toml"))
    profiles = lookup("data set to reproduce", dataset, suites)
    if profile not in profiles:
        allowed = " or ".join(profiles)
        raise ValueError(f"{dataset} has no profile '{profile}'; give --profile {allowed}")
    return profiles[profile]


def fetch(suite: Suite, protocol: Protocol) -> dict[str, ReferenceStatistics]:
    """Fetch and check every file that a suite needs; the reference by checkpoint."""
    for extractor in {protocol.extractor, protocol.logits_extractor}:
        weights_file(extractor)
    references = {}
    for name in suite.checkpoints:
        training = read_info(find_checkpoint(name)).training
        references[name] = load_reference(protocol, None, training.dataset if training else None)
    return references


def with_second_time(name: str, protocol: Protocol, suite: Suite, out: Path, device: str) -> Path:
    """The checkpoint if its sampling times are known, or a copy in `out` with a searched one."""
    path, count = find_checkpoint(name), suite.num_images
    info, copy = read_info(path), out / "checkpoints" / path.name
    if info.parameterization == "edm" or info.two_step_time or suite.checkpoints[name] < 2:
        return path
    searched = read_info(copy) if copy.is_file() else info
    same_weights = (searched.converted, searched.training) == (info.converted, info.training)
    choice = searched.two_step_selection
    if same_weights and choice and choice.num_images == count:
        return copy
    model = load_model(path, device)
    key = (model.checkpoint.sha256, protocol.name, protocol.version, count)
    folder = out / SAMPLE_SETS / f"search_{path.stem}_{_digest(key)}"
    search = search_time(model, protocol, num_images=count, device=device, folder=folder)
    if rank_and_world_size()[0] == 0:
        convert(path, copy, two_step_time=search.time, two_step_selection=search.selection)
        shutil.rmtree(folder, ignore_errors=True)
    broadcast(None)  # the others wait for the file
    return copy


def reproduce(
    suite: Suite,
    out: Path,
    device: str = "cpu",
    overwrite: bool = False,
    keep_samples: bool = False,
) -> list[RunRecord]:
    """Sample every model of `suite`, score after each evaluation, write records and grids.

    Everything to download is fetched first, and a second time that is not published is searched.
    Images of n steps are stage n of the same sampling, so that fewer steps cost nothing more. An
    interrupted job continues: records of the same settings and code are read again, and sample
    sets in out/sample-sets, which stay there if `keep_samples`, are completed.
    """
    protocol, count = load_protocol(suite.protocol), suite.num_images
    references = fetch(suite, protocol)
    paths = {name: with_second_time(name, protocol, suite, out, device) for name in references}
    samplers = {
        name: sampler_settings(read_info(path), suite.checkpoints[name], protocol.to_uint8)
        for name, path in paths.items()
    }
    known = {} if overwrite else _known_records(out, protocol)
    is_first = rank_and_world_size()[0] == 0
    records: list[RunRecord] = []
    seeds = [*product(samplers.items(), range(suite.seeds))]
    for (name, settings), seed in progress_bar(seeds, not is_first, desc="all", unit="seed"):
        if seed == 0:
            model, reference = load_model(paths[name], device), references[name]
        label, sha256 = model.path.stem, model.checkpoint.sha256
        keys = [(label, sha256, s, seed, count, reference.sha256) for s in settings.stages]
        missing = [stage for stage, key in enumerate(keys, 1) if key not in known]
        sample_set = f"{label}_n{count}_seed{seed}_{_digest((sha256, settings))}"
        folder = out / SAMPLE_SETS / sample_set
        if missing:
            start, continued = time.perf_counter(), folder.exists()
            text = f"{label} seed {seed}"
            samples = sample(model, settings, count, seed, model.image_size, text, folder)
            duration_s = round(time.perf_counter() - start, 2)
            durations_s = {} if continued else {"sampling_all_steps": duration_s}
        for stage in missing:
            images = SampleSet(folder / f"stage{stage}.npy", label)
            for record in evaluate(
                images,
                [protocol],
                samples.provenances[stage - 1],
                num_images=count,
                device=device,
                progress=True,
                durations_s=durations_s,
            ):
                write_results(record, images, out, overwrite)
                known[_key(record)] = record
        records += [known[key] for key in keys if key in known]
        if is_first and not keep_samples:
            shutil.rmtree(folder, ignore_errors=True)
    return records


def _digest(key: object) -> str:
    """8 digits that tell folders apart."""
    return hashlib.sha256(to_json(key).encode()).hexdigest()[:8]


def _key(record: RunRecord) -> tuple[Any, ...]:
    """Everything that makes the scores of a record, but protocol and code."""
    checkpoint = record.checkpoint and record.checkpoint.sha256
    count, reference = record.num_images, record.reference.sha256
    return record.model, checkpoint, record.sampler, record.seed, count, reference


def _known_records(out: Path, protocol: Protocol) -> dict[tuple[Any, ...], RunRecord]:
    """Records in `out` of this protocol and code."""
    code, folder = provenance(), out / FOLDER
    records = map(read_record, record_files(folder) if folder.is_dir() else [])
    return {
        _key(record): record
        for record in records
        if record.protocol == protocol
        and record.num_sampled == record.num_images
        and record.provenance.cmrepro == code.cmrepro
        and record.provenance.commit == code.commit
    }
