"""One run: images scored under protocols, with everything that a record keeps."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.checkpoints.io import CheckpointModel
from cmrepro.data import ImageSource, images_sha256
from cmrepro.files import array_sha256, atomic_path, sha256
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import load_reference
from cmrepro.metrics.score import Scores, Task, num_scored, score
from cmrepro.provenance import provenance
from cmrepro.records3 import RunRecord
from cmrepro.sampling import SamplerSettings, Samples
from cmrepro.schema import to_builtins


@dataclass(frozen=True)
class Origin:
    """Where a sample set comes from.

    Attributes:
        model: Name of its checkpoint, or of the set itself.
        nfe: Network evaluations an image; None where no network here made it.
        seed: Of the noise; None likewise.
        checkpoint: File name, checksum and header of the checkpoint; empty for foreign images.
        sampler: Fields of `SamplerSettings` with `nfe`, `num_images` and `device`; empty for
            foreign images.
        noise_sha256: Checksum of the noise used; empty for foreign images.
        labels_sha256: Checksum of the classes, int64; empty without any.
    """

    model: str
    nfe: int | None = None
    seed: int | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    noise_sha256: str = ""
    labels_sha256: str = ""


def sampled_origin(
    model: CheckpointModel, settings: SamplerSettings, seed: int, samples: Samples
) -> Origin:
    """The origin of the images that `settings` gives, a stage of `samples`."""
    return Origin(
        model=model.path.stem,
        nfe=settings.nfe,
        seed=seed,
        checkpoint={
            "file": model.path.name,
            "sha256": sha256(model.path),
            **to_builtins(model.info),
        },
        sampler=asdict(settings)
        | {
            "nfe": settings.nfe,
            "num_images": len(samples.stages[0]),
            "device": str(next(model.parameters()).device),
        },
        noise_sha256=samples.noise_sha256[settings.num_stages - 1],
        labels_sha256="" if samples.labels is None else array_sha256(samples.labels),
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


def read_origin(path: Path, images: ImageSource, *, check: bool = True) -> Origin:
    """The origin that lies beside a sample set; only the set's name where there is none.

    Args:
        path: Of the set.
        images: The set, opened.
        check: Whether to read all images and compare their checksum with the origin's.

    Raises:
        ValueError: The .json beside the set is not its origin.
    """
    beside = path.with_suffix(".json")
    if path.suffix != ".npz" or not beside.is_file():
        return Origin(images.name)
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
        expected = fields.pop("images_sha256")
        origin = Origin(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside} is not the origin of {path} ({error}); remove it") from error
    if check and images_sha256(images) != expected:
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
    for protocol in protocols:  # before references are downloaded
        num_scored(images.num_images, protocol, num_images)
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
        _record(task, result, origin, device, {**(durations_s or {}), "scoring": scoring_s})
        for task, result in zip(tasks, scores, strict=bool(scores))
    ]


def _dataset(origin: Origin) -> str | None:
    """What the model was trained on: by its recipe, or what is published of a released one."""
    checkpoint = origin.checkpoint
    trained = checkpoint.get("recipe") or checkpoint.get("origin") or {}
    return trained.get("dataset")


def comparable(origin: Origin, protocol_version: int) -> dict[str, Any]:
    """What must agree for two records to be compared (`RunRecord`); None where it is unknown."""
    training = origin.checkpoint.get("origin", {})
    recipe = origin.checkpoint.get("recipe", {})
    name = recipe.get("name") or training.get("recipe")
    selection = origin.checkpoint.get("selection")
    return {
        "scale": name and ("demo" if name.startswith("demo-") else "paper"),
        "network": origin.checkpoint.get("network"),
        "dataset": _dataset(origin),
        "images_seen": training.get("images_seen"),
        "global_batch": recipe.get("batch_size", training.get("global_batch")),
        "initialisation": recipe.get("initialisation", training.get("initialisation")),
        "weights": training.get("weights"),
        "training_steps": training.get("steps"),
        "selection": selection and selection_parts(selection),
        "protocol_version": protocol_version,
    }


# What `cmrepro search-times` writes into a checkpoint's header.
SEARCHED = re.compile(
    r"; second time .*: least (?P<metric>\w+) of \d+ by (?P<search>\w+) search under .* "
    r"on (?P<images>\d+) images of seed (?P<seed>\d+)"
)


def selection_parts(text: str) -> dict[str, Any]:
    """A checkpoint's `selection` with what can be known of it.

    Returns:
        `text`, and of it `rule`, and where a time was searched, `metric`, `seeds` and `images` of
        each; None where the text does not say.
    """
    found = SEARCHED.search(text)
    if found is None:
        return {"text": text, "rule": text, "metric": None, "seeds": None, "images": None}
    return {
        "text": text,
        "rule": f"{text[: found.start()]}; second time by {found['search']} search",
        "metric": found["metric"],
        "seeds": [int(found["seed"])],
        "images": int(found["images"]),
    }


def _record(
    task: Task, scores: Scores, origin: Origin, device: str, durations_s: dict[str, float]
) -> RunRecord:
    hashes = {
        "noise": origin.noise_sha256,
        "labels": origin.labels_sha256,
        "images": scores.images_sha256,
        "features": scores.features_sha256,
    }
    return RunRecord(
        model=origin.model,
        nfe=origin.nfe,
        seed=origin.seed,
        num_images=scores.num_images,
        protocol=_as_read(asdict(task.protocol)),
        reference={
            "name": task.reference.name,
            "sha256": task.reference.sha256,
            **asdict(task.reference.metadata),
        },
        scores=scores.values,
        uncertainty=_as_read(scores.uncertainty),
        warnings=scores.warnings,
        checkpoint=_as_read(dict(origin.checkpoint)),
        sampler=_as_read(dict(origin.sampler)),
        comparable=comparable(origin, task.protocol.version),
        hashes={key: value for key, value in hashes.items() if value},
        provenance=provenance() | {"device": device},
        durations_s=durations_s,
    )


def _as_read(fields: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from its file: tuples become lists."""
    read: dict[str, Any] = json.loads(json.dumps(fields))
    return read
