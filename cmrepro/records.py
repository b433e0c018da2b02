"""Records of trainings, checkpoints and sample sets, and of one run as JSON, `RunRecord`."""

import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack

from msgspec import Meta, field

from cmrepro import schema, settings
from cmrepro.files import atomic_path
from cmrepro.schema import Checksum, NotNegative, Positive, Share, Struct

SCHEMA: Literal["cmrepro-record-4"] = "cmrepro-record-4"
FOLDER = Path("results/records")
THEOREMS = Path("results/theorems.json")
RELATIVE_TOLERANCE = 1e-4  # of scores between machines
NOISE = "uniform-noise"  # name of the anchor that no trained model should come near


class Provenance(Struct, frozen=True, kw_only=True):
    """Code, machine and command behind a result."""

    command: str
    cmrepro: str  # version of this package
    commit: str | None  # commit of the checkout; None for an installed package
    dirty: bool | None  # True if the checkout's code differs from that commit
    python: str
    packages: dict[str, str]  # version by package
    platform: str  # operating system and architecture
    cpu: str  # processor, instruction set, number of usable cores
    threads: int  # threads of one process
    gpu: str | None  # accelerator; None without one


class StatedTraining(Struct, frozen=True, kw_only=True):
    """Training of a model from elsewhere, as its author states it."""

    dataset: str | None = None  # name of the images trained on
    batch_size: Positive | None = None  # global batch, images
    images_seen: Positive | None = None  # images, with repetition


class TrainingRun(Struct, frozen=True, kw_only=True):
    """Training of a model: measured for our own, published for official checkpoints."""

    method: settings.Method  # as in `Recipe`
    scale: settings.Scale  # as in `Recipe`
    stands_for: str  # as in `Recipe`
    dataset: str  # name of the images trained on
    initialisation: settings.Initialisation | None = None  # "random" or "teacher"
    weights: str = "not stated"  # the weights that were kept: "ema", "online" or "not stated"
    ema_rate: Share | None = None  # decay per step of the average
    distance: str | None = None  # d of the consistency losses
    batch_size: Positive | None = None  # global batch, images
    total_steps: Positive | None = None  # optimizer steps taken
    images_seen: Positive | None = None  # images, with repetition
    seed: NotNegative | None = None  # this and the rest: our own trainings only
    dataset_sha256: Checksum | None = None  # of all training images' pixels, in their order
    dataset_files_sha256: Checksum | None = None  # of names and sizes of too many files to decode
    teacher: str | None = None  # name or file of the teacher
    teacher_sha256: Checksum | None = None  # checksum of the teacher's file
    precision: str | None = None  # "fp32", "bf16" or "fp16"
    num_processes: Positive | None = None  # processes that shared a batch
    duration_s: float | None = None  # seconds in training steps
    provenance: Provenance | None = None  # code and machine


class ConvertedFile(Struct, frozen=True, kw_only=True):
    """The file that a converted checkpoint was made from."""

    file: str  # name of the file
    sha256: Checksum  # its checksum, or that of a folder's weights
    format: Literal["torch", "flax", "diffusers", "safetensors"]
    key: str | None = None  # of the state dict among several in the file
    conversion: int  # version of the conversion
    name: str | None = None  # name of an official checkpoint in the registry
    url: str | None = None  # its address
    licence: str | None = None  # its licence
    step: int | None = None  # step counter inside the file, where it has one


class CheckpointInfo(Struct, frozen=True, kw_only=True):
    """Header of a checkpoint."""

    network: str  # name of the network preset
    parameterization: Literal["boundary", "edm"]  # "boundary" (f) or "edm" (D)
    sigma_data: float  # as in `Recipe`, and so the next three
    sigma_min: float
    sigma_max: float
    rho: float = 7.0
    recipe: settings.Recipe | None = None  # the recipe of our own trainings
    training: TrainingRun | None = None  # how the weights were trained; None where unknown
    converted: ConvertedFile | None = None  # the file of another format that the weights come from
    selection: settings.Selection = settings.Selection(rule="last checkpoint")
    two_step_time: float | None = None  # second sampling time of a consistency function
    two_step_selection: settings.Selection | None = None  # None: published or given by hand


class Checkpoint(CheckpointInfo, frozen=True, kw_only=True):
    """The checkpoint that generated a sample set: its header, file name and checksum."""

    file: str
    sha256: Checksum


class Hashes(Struct, frozen=True, kw_only=True):
    """SHA-256 of each stage of a run, in the order in which two runs may part."""

    noise: Checksum | None = None  # noise of all sampled images, float32
    labels: Checksum | None = None  # classes of all sampled images, int64
    images: Checksum  # images scored, beside a sample set all of them, uint8 (N, H, W, 3)
    features: Checksum | None = None  # features scored, float32 (N, D)


class Stated(TypedDict, total=False):
    """Facts of a model from elsewhere and of its images, as its author states them."""

    model: str  # name of the model in records and tables
    nfe: int  # network evaluations per image
    seed: int  # seed of the noise
    times: Sequence[float]  # sampling times, decreasing
    dataset: str  # name of the images trained on, e.g. "cifar10-train"
    images_seen: int  # in training, with repetition
    batch_size: int  # global batch of the training, images


class SampleProvenance(Struct, frozen=True, kw_only=True):
    """Provenance of a sample set, in the JSON beside it (`samples.npz.provenance.json`)."""

    # Name of the checkpoint, or of the sample set where nothing more is known; in file names
    model: Annotated[str, Meta(pattern="^[^/]+$", max_length=100)]
    nfe: Positive | None = None  # network evaluations per image; None where unknown
    seed: NotNegative | None = None  # seed of the noise; None where unknown
    sampler: settings.SamplerSettings | None = None  # None for images from elsewhere
    checkpoint: Checkpoint | None = None  # what made them; None for images from elsewhere
    # Sampling times as stated, of images from elsewhere
    times: tuple[Annotated[float, Meta(gt=0, lt=1e9)], ...] | None = None
    training: StatedTraining | None = None  # of the model, where there is no checkpoint
    num_sampled: Positive | None = None  # images of the whole sample set
    sampling_device: str | None = None  # device that made them
    sampling_batch_size: Positive | None = None  # images of a forward pass; None where unknown
    hashes: Hashes | None = None  # checksums of noise, labels and images of the whole sample set

    def stating(self, **stated: Unpack[Stated]) -> "SampleProvenance":
        """Add what is stated; refuse a contradiction to what is known."""
        new: dict[str, Any] = {key: value for key, value in stated.items() if value is not None}
        times = tuple(map(float, new.get("times", ())))
        new |= {"times": times, "nfe": new.get("nfe", len(times))} if times else {}
        by_checkpoint = self.checkpoint.training if self.checkpoint else None
        trained = by_checkpoint or self.training
        training = {key: getattr(trained, key, None) for key in StatedTraining.__struct_fields__}
        known = training | {"nfe": self.nfe or len(times) or None, "seed": self.seed}
        known["times"] = self.sampler.times if self.sampler else self.times
        known["model"] = self.model if self.checkpoint else None
        unknown = () if by_checkpoint else (None,)  # a checkpoint states all that is known
        for key, value in known.items():
            if key in new and value not in (*unknown, new[key]):
                found = f"got {key} = {new[key]}; provenance or times of the images say {value}"
                raise ValueError(f"{found}; leave it out")
        training = {key: new.pop(key, value) for key, value in training.items()}
        if any(training.values()) and not by_checkpoint:
            new["training"] = training
        if self.sampler:
            new.pop("times", None)
        return self.replace(**new)


class Uncertainty(Struct, frozen=True, kw_only=True):
    """Uncertainty of the scores of one sample set."""

    # 95 % interval by metric
    intervals: dict[settings.Metric, tuple[float, float]] = field(default_factory=dict)


_UNIT = dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0))
_POSITIVE = dict.fromkeys(("fid", "sfid", "density"), (0.0, inf))
RANGES: dict[str, tuple[float, float]] = {"is": (1, inf), **_POSITIVE, **_UNIT}


class RunRecord(SampleProvenance, frozen=True, kw_only=True):
    """One sample set scored under one protocol."""

    num_images: Positive  # images scored
    protocol: settings.Protocol  # every setting of the protocol
    reference: settings.Reference  # reference statistics
    scores: dict[settings.Metric, float]  # value by metric
    uncertainty: Uncertainty | None = None  # intervals, where they were requested
    warnings: tuple[str, ...] = ()  # limits of the scores' meaning, one sentence each
    hashes: Hashes  # checksums of noise, images and features
    provenance: Provenance  # code and machine of the scoring
    device: str  # device of the extractor
    durations_s: dict[str, float] = field(default_factory=dict)  # seconds by stage
    schema: Literal["cmrepro-record-4"] = SCHEMA  # `SCHEMA`

    def __post_init__(self) -> None:
        for metric, value in self.scores.items():
            low, high = RANGES.get(metric, (-inf, inf))
            if not low <= value <= high:
                raise ValueError(f"got {metric} = {value}; allowed is {low:g} to {high:g}")

    def __repr__(self) -> str:
        scores = ", ".join(f"{metric} {value:.4g}" for metric, value in self.scores.items())
        return f"RunRecord({self.id}: {scores})"

    def _repr_html_(self) -> str:
        """Scores as a table, for notebooks."""
        rows = (f"<tr><th>{key}</th><td>{x:.5g}</td></tr>" for key, x in self.scores.items())
        return f"<table><caption>{html.escape(self.id)}</caption>{''.join(rows)}</table>"

    @property
    def training_seed(self) -> int:
        """Seed of the training behind the images; 0 where it is not known."""
        training = self.checkpoint.training if self.checkpoint else None
        return training.seed or 0 if training else 0

    @property
    def grid_name(self) -> str:
        """File name of the grid of its first images."""
        seed = f"-seed{self.training_seed}" if self.training_seed else ""
        return f"{self.model}{seed}_nfe{self.nfe}.png"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that makes the scores, as flat keys: equal for two runs of one experiment."""
        sampler = self.sampler and schema.to_builtins(self.sampler)
        if sampler and sampler["precision"] == "fp32":  # as in records from before it was a field
            del sampler["precision"]
        return {
            "model": self.model,
            "checkpoint": self.checkpoint and self.checkpoint.sha256,
            "nfe": self.nfe,
            "seed": self.seed,
            "num_images": self.num_images,
            **schema.flat({"sampler": sampler or {}}),
            **({"times": self.times} if self.times else {}),
            # Nothing else tells one sample set of an unknown seed from another.
            "images": self.hashes.images if self.seed is None else None,
            "protocol": self.protocol.name,
            "protocol version": self.protocol.version,
            "reference": self.reference.sha256,
        }

    @property
    def id(self) -> str:
        """File name without ending: readable parts, then 8 digits of the identity's checksum."""
        nfe = [] if self.nfe is None else [f"nfe{self.nfe}"]
        seed = [] if self.seed is None else [f"seed{self.seed}"]
        protocol, count = f"{self.protocol.name}-v{self.protocol.version}", f"n{self.num_images}"
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        parts = [self.model, *nfe, protocol, count, *seed, digest[:8]]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))


def read_record(path: Path) -> RunRecord:
    """The record in a file."""
    fields = schema.read_json(dict[str, Any], path)
    if (found := fields.get("schema")) != SCHEMA:
        raise ValueError(
            f'{path} has schema {json.dumps(found)}, allowed is "{SCHEMA}"; score the images '
            "again, or read it with the cmrepro that wrote it"
        )
    return schema.convert(RunRecord, fields, str(path))


def record_files(folder: Path) -> list[Path]:
    """Records in a folder, by name; hidden files and JSON of other programs are left out."""
    paths = sorted(path for path in folder.glob("*.json") if path.name[0] != ".")
    ours = re.compile(f".*_{'[0-9a-f]' * 8}")
    return [p for p in paths if ours.fullmatch(p.stem) or b"cmrepro" in p.read_bytes()]


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a folder, in the order of their file names, which are their ids."""
    records = {path: read_record(path) for path in record_files(folder)}
    if not records:
        raise ValueError(f"no records in {folder}; make some with 'cmrepro reproduce cifar10'")
    for path, record in records.items():
        if path.stem != record.id:
            raise ValueError(f"{path} holds the record '{record.id}'; rename the file")
    return list(records.values())


def differences(a: RunRecord, b: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Both values of every flat key in which two records differ; None where a key is missing."""
    first, second = schema.flat(schema.to_builtins(a)), schema.flat(schema.to_builtins(b))
    pairs = {key: (first.get(key), second.get(key)) for key in first | second}
    return {key: (x, y) for key, (x, y) in pairs.items() if x != y}


def write_record(record: RunRecord, folder: Path, overwrite: bool = False) -> Path:
    """Write folder/ID.json and return its path; a record of the same run there stays as it is."""
    path = folder / f"{record.id}.json"
    if path.is_file() and not overwrite:
        keys = differences(read_record(path), record)
        if found := [key for key in keys if not key.startswith(("provenance", "durations_s"))]:
            raise ValueError(
                f"{path} is there and differs in {', '.join(found)}; keep one: overwrite it, "
                "or keep both in another folder ('cmrepro compare' explains)"
            )
        return path
    with atomic_path(path) as temporary:
        temporary.write_text(schema.to_json(record), encoding="utf-8")
    return path


def merge_records(paths: Iterable[Path], folder: Path, overwrite: bool = False) -> list[Path]:
    """Write records from elsewhere (files or folders) into a folder, each under its id."""
    files = [f for path in paths for f in (record_files(path) or [path])]
    return [write_record(read_record(file), folder, overwrite) for file in files]


class TheoremCheck(Struct, frozen=True, kw_only=True):
    """A statement about the method, measured on data whose score is known."""

    id: str  # e.g. "theorem1/heun/mean"
    data: str  # name of the data
    value: float  # order of convergence, or the quantity itself
    interval: tuple[float, float]  # 95 %
    num_scales: tuple[Positive, ...] = ()  # N of `errors`
    errors: tuple[float, ...] = ()  # at each N, mean over replicates


class TheoremRun(Struct, frozen=True, kw_only=True):
    """All checks of one run."""

    checks: tuple[TheoremCheck, ...]
    provenance: Provenance
    duration_s: float
