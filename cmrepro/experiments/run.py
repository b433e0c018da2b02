"""One run: a sample set scored under protocols, as records."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import asdict

from cmrepro.data import ImageSource
from cmrepro.metrics.evaluate import Task, num_scored, score
from cmrepro.metrics.references import load_reference
from cmrepro.provenance import provenance
from cmrepro.records import Hashes, RunRecord, SampleProvenance
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

    `references` are names or files of the reference statistics of each protocol; by default the
    protocol's own, which must be of the data set that the model was trained on. `num_images` are
    by default as many as each protocol asks for. `intervals` adds 95 % intervals and FID against
    the number of images. `durations_s` are seconds of earlier stages.
    """
    start = time.perf_counter()
    if len(references) not in (0, len(protocols)):
        raise ValueError(
            f"got {len(references)} references for {len(protocols)} protocols; give one for each, "
            "in their order, or none"
        )
    for protocol in protocols:  # before references are downloaded
        num_scored(images.num_images, protocol, num_images)
    training = samples.checkpoint.training if samples.checkpoint else None
    tasks = []
    for protocol, name in zip(protocols, references or [None] * len(protocols), strict=True):
        reference = load_reference(protocol, name)
        if name is None:  # a named one may be of other data; the record says so
            reference.require_protocol(protocol, training.dataset if training else None)
        tasks.append(Task(protocol, reference, num_images))
    scores = score(
        images,
        tasks,
        device=device,
        intervals=intervals,
        checksum_all=samples.hashes is not None,
        progress=progress,
    )
    if scores and samples.hashes and scores[0].set_sha256 != samples.hashes.images:
        raise ValueError(
            f"the provenance beside '{images.name}' is that of other images; remove it or sample "
            "again"
        )
    stages = {**(durations_s or {}), "scoring": round(time.perf_counter() - start, 2)}
    sampled = asdict(samples)
    hashes = sampled.pop("hashes")
    return [
        RunRecord(
            **sampled,
            num_images=result.num_images,
            protocol=task.protocol,
            reference=task.reference.for_record(),
            scores=result.values,
            uncertainty=result.uncertainty,
            warnings=tuple(result.warnings),
            hashes=Hashes(
                noise=hashes and hashes.noise,
                labels=hashes and hashes.labels,
                images=result.images_sha256,
                features=result.features_sha256,
            ),
            provenance=provenance(),
            device=device,
            durations_s=stages,
        )
        for task, result in zip(tasks, scores, strict=bool(scores))
    ]
