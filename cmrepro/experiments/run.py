"""One run: a sample set scored under protocols, as records."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import asdict

from cmrepro.data import ImageSource
from cmrepro.data.grids import GRID_COLUMNS, GRID_ROWS, write_grid
from cmrepro.metrics.evaluate import Task, num_scored, score
from cmrepro.metrics.references import load_reference
from cmrepro.provenance import provenance
from cmrepro.records import FOLDER, Hashes, RunRecord, SampleProvenance, write_record
from cmrepro.settings import Protocol


def evaluate(
    images: ImageSource,
    protocols: Sequence[Protocol],
    samples: SampleProvenance,
    *,
    references: Sequence[str | Path | None] = (),
    num_images: int | None = None,
    device: str = "cpu",
    intervals: bool = False,
    progress: bool = False,
    durations_s: Mapping[str, float] | None = None,
) -> list[RunRecord]:
    """Score a sample set in one pass: a record for each protocol at rank 0, none elsewhere.

    `references` are names or files, one a protocol; by default the protocol's for the data set
    that the model was trained on (a named one may be of other data; the record says so).
    `num_images` are by default as many as each protocol needs. `intervals` adds 95 %
    intervals. `durations_s` are seconds of earlier stages.
    """
    start = time.perf_counter()
    if len(references) not in (0, len(protocols)):
        found = f"got {len(references)} references for {len(protocols)} protocols"
        raise ValueError(f"{found}; give one for each, in their order, or none")
    for protocol in protocols:  # before references are downloaded
        num_scored(images.num_images, protocol, num_images)
    training = (samples.checkpoint and samples.checkpoint.training) or samples.training
    dataset = training.dataset if training else None
    tasks = [
        Task(protocol, load_reference(protocol, name, dataset), num_images)
        for protocol, name in zip(protocols, references or [None] * len(protocols), strict=True)
    ]
    hashes = samples.hashes
    options = {"intervals": intervals, "checksum_all": hashes is not None, "progress": progress}
    scores = score(images, tasks, device=device, **options)
    if scores and hashes and scores[0].set_sha256 != hashes.images:
        found = f"the provenance beside '{images.name}' is that of other images"
        raise ValueError(f"{found}; remove it or sample again")
    before = {"noise": hashes.noise, "labels": hashes.labels} if hashes else {}
    stages = {**(durations_s or {}), "scoring": round(time.perf_counter() - start, 2)}
    sampled = {key: value for key, value in asdict(samples).items() if key != "hashes"}
    return [
        RunRecord(
            **sampled,
            num_images=result.num_images,
            protocol=task.protocol,
            reference=task.reference.for_record(),
            scores=result.values,
            uncertainty=result.uncertainty,
            warnings=tuple(result.warnings),
            hashes=Hashes(images=result.images_sha256, features=result.features_sha256, **before),
            provenance=provenance(),
            device=device,
            durations_s=stages,
        )
        for task, result in zip(tasks, scores, strict=bool(scores))
    ]


def write_results(
    record: RunRecord, images: ImageSource | None, out: Path, overwrite: bool = False
) -> Path:
    """Write a record below `out`, and for seed 0 a grid of its first images; the record's path."""
    folder = out / FOLDER
    if (folder / f"{record.id}.json").is_file():  # another result is refused before its grid
        write_record(record, folder, overwrite)
    if images is not None and record.nfe is not None and not record.seed:
        first = next(images.batches(GRID_ROWS * GRID_COLUMNS))
        grid = out / "results/samples" / record.grid_name
        write_grid(grid, first, overwrite)
    return write_record(record, folder, overwrite)  # last: a record is the end of its run
