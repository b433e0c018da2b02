"""One run: images scored under protocols, with everything that a record keeps."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.checkpoints.io import CheckpointModel
from cmrepro.datasets import ImageSource, images_sha256, open_images
from cmrepro.experiments.provenance import provenance
from cmrepro.experiments.sampling import SamplerSettings
from cmrepro.files import array_sha256, atomic_path, sha256
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import load_reference
from cmrepro.metrics.score import Scores, Task, score
from cmrepro.records import RunRecord


@dataclass(frozen=True)
class Origin:
    """Where a sample set comes from.

    Attributes:
        model: Name of its checkpoint, or of the set itself.
        nfe: Network evaluations an image; None where no network here made it.
        seed: Of the noise; None likewise.
        checkpoint: File name, checksum and header of the checkpoint; empty for foreign images.
        sampler: Fields of `SamplerSettings` with `nfe`; empty for foreign images.
        noise_sha256: Checksum of the noise; empty for foreign images.
    """

    model: str
    nfe: int | None = None
    seed: int | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    noise_sha256: str = ""


def sampled_origin(
    model: CheckpointModel, settings: SamplerSettings, seed: int, noise_sha256: str
) -> Origin:
    """The origin of images that were sampled here."""
    return Origin(
        model=model.path.stem,
        nfe=settings.nfe,
        seed=seed,
        checkpoint={
            "file": model.path.name,
            "sha256": sha256(model.path),
            **asdict(model.info),
        },
        sampler=asdict(settings) | {"nfe": settings.nfe},
        noise_sha256=noise_sha256,
    )


def write_sample_set(
    path: Path,
    images: NDArray[np.uint8],
    origin: Origin,
    labels: NDArray[np.int64] | None = None,
) -> None:
    """Write images as `arr_0` of an .npz and classes, if any, as `arr_1` (ADM convention).

    Their origin lies beside it as .json.
    """
    with atomic_path(path) as temporary:  # which ends in .npz too, as np.savez wants it
        np.savez(temporary, images) if labels is None else np.savez(temporary, images, labels)
    with atomic_path(path.with_suffix(".json")) as temporary:
        fields = asdict(origin) | {"images_sha256": array_sha256(images)}
        temporary.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")


def read_origin(path: Path, name: str) -> Origin:
    """The origin that lies beside a sample set; only the name where there is none.

    Raises:
        ValueError: The .json beside the set is not its origin.
    """
    beside = path.with_suffix(".json")
    if path.suffix != ".npz" or not beside.is_file():
        return Origin(name)
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
        expected = fields.pop("images_sha256")
        origin = Origin(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside} is not the origin of {path} ({error}); remove it") from error
    found = images_sha256(open_images(path))
    if found != expected:
        raise ValueError(
            f"{beside} belongs to other images than {path}; remove it or sample again"
        )
    return origin


def evaluate(
    images: ImageSource,
    protocols: Sequence[Protocol],
    origin: Origin,
    *,
    references: Sequence[str | Path | None] = (),
    num_images: int | None = None,
    device: str = "cpu",
    bootstrap: int = 0,
    progress: bool = False,
    durations_s: Mapping[str, float] | None = None,
) -> list[RunRecord]:
    """Score images under every protocol and make the records.

    Args:
        images: Read once.
        protocols: How to score.
        origin: Where the images come from.
        references: Name or file of the reference statistics of each protocol; its own by default,
            which must be of the data that the model was trained on.
        num_images: Score the first so many; what each protocol asks by default.
        device: Where extractors run.
        bootstrap: Resamples for intervals of the scores; 0 for none.
        progress: Whether to show a progress bar.
        durations_s: Seconds of earlier stages, kept in the records.

    Returns:
        One record a protocol; none in processes of `torchrun` other than the first.

    Raises:
        ValueError: Fewer images than asked for, images of another type, a reference of another
            protocol, or not one reference a protocol.
    """
    start = time.perf_counter()
    if len(references) not in (0, len(protocols)):
        raise ValueError(
            f"got {len(references)} references for {len(protocols)} protocols; give one for each, "
            "in their order, or none"
        )
    chosen = references or [None] * len(protocols)
    tasks = [
        Task(protocol, load_reference(protocol, reference), num_images)
        for protocol, reference in zip(protocols, chosen, strict=True)
    ]
    for task, named in zip(tasks, chosen, strict=True):
        if named is None:  # who names one may compare with other data; the record says so
            task.reference.require_protocol(task.protocol, _dataset(origin))
    scores = score(images, tasks, device=device, bootstrap=bootstrap, progress=progress)
    scoring_s = round(time.perf_counter() - start, 2)
    return [
        _record(task, result, origin, {**(durations_s or {}), "scoring": scoring_s})
        for task, result in zip(tasks, scores, strict=bool(scores))
    ]


def _dataset(origin: Origin) -> str | None:
    """What the model was trained on: by its recipe, or what is published of a released one."""
    checkpoint = origin.checkpoint
    trained = checkpoint.get("recipe") or checkpoint.get("origin") or {}
    return trained.get("dataset")


def _record(
    task: Task, scores: Scores, origin: Origin, durations_s: dict[str, float]
) -> RunRecord:
    training = origin.checkpoint.get("origin", {})
    recipe = origin.checkpoint.get("recipe", {})
    hashes = {
        "noise": origin.noise_sha256,
        "images": scores.images_sha256,
        "features": scores.features_sha256,
    }
    return RunRecord(
        model=origin.model,
        nfe=origin.nfe,
        seed=origin.seed,
        num_images=scores.num_images,
        protocol=json.loads(json.dumps(asdict(task.protocol))),  # as it comes back from its file
        reference={
            "name": task.reference.name,
            "sha256": task.reference.sha256,
            **asdict(task.reference.metadata),
        },
        scores=scores.values,
        uncertainty=scores.uncertainty,
        warnings=scores.warnings,
        checkpoint=dict(origin.checkpoint),
        sampler=dict(origin.sampler),
        comparable={
            "network": origin.checkpoint.get("network"),
            "dataset": _dataset(origin),
            "images_seen": training.get("images_seen"),
            "global_batch": recipe.get("batch_size", training.get("global_batch")),
            "initialisation": recipe.get("initialisation", training.get("initialisation")),
            "weights": training.get("weights"),
            "training_steps": training.get("steps"),
            "selection": origin.checkpoint.get("selection"),
        },
        hashes={key: value for key, value in hashes.items() if value},
        provenance=provenance(),
        durations_s=durations_s,
    )
