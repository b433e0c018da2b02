"""One run: images scored under a protocol, with everything that a record keeps."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrepro.checkpoints.io import CheckpointModel
from cmrepro.datasets import load_sample_set
from cmrepro.experiments.provenance import provenance
from cmrepro.experiments.sampling import SamplerSettings
from cmrepro.files import array_sha256, atomic_path, sha256
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import bundled_reference, load_reference
from cmrepro.metrics.score import score
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


def write_sample_set(path: Path, images: NDArray[np.uint8], origin: Origin) -> None:
    """Write images as `arr_0` of an .npz (ADM convention), and beside it their origin as .json."""
    with atomic_path(path) as temporary:  # which ends in .npz too, as np.savez wants it
        np.savez(temporary, arr_0=images)
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
    found = array_sha256(load_sample_set(path).images)
    if found != expected:
        raise ValueError(
            f"{beside} belongs to other images than {path}; remove it or sample again"
        )
    return origin


def evaluate(
    images: NDArray[np.uint8],
    protocol: Protocol,
    origin: Origin,
    *,
    reference: Path | None = None,
    num_images: int | None = None,
    durations_s: Mapping[str, float] | None = None,
) -> RunRecord:
    """Score images and make their record.

    Args:
        images: uint8 (N, H, W, 3).
        protocol: How to score.
        origin: Where the images come from.
        reference: File of reference statistics; the protocol's own by default.
        num_images: Score the first so many; what the protocol asks by default.
        durations_s: Seconds of earlier stages, kept in the record.

    Raises:
        ValueError: Fewer images than asked for, images of another type, or a reference of another
            protocol.
    """
    start = time.perf_counter()
    reference_path = reference or bundled_reference(protocol.reference)
    statistics = load_reference(protocol, reference_path)
    scores = score(images, protocol, statistics, num_images=num_images)
    training = origin.checkpoint.get("origin", {})
    recipe = origin.checkpoint.get("recipe", {})
    hashes = {
        "noise": origin.noise_sha256,
        "images": array_sha256(images[: scores.num_images]),
        "features": scores.features_sha256,
    }
    return RunRecord(
        model=origin.model,
        nfe=origin.nfe,
        seed=origin.seed,
        num_images=scores.num_images,
        protocol=asdict(protocol),
        reference={
            "name": reference_path.stem,
            "sha256": sha256(reference_path),
            **asdict(statistics.metadata),
        },
        scores=scores.values,
        warnings=scores.warnings,
        checkpoint=dict(origin.checkpoint),
        sampler=dict(origin.sampler),
        comparable={
            "network": origin.checkpoint.get("network"),
            "dataset": recipe.get("dataset"),
            "images_seen": training.get("images_seen"),
            "global_batch": recipe.get("batch_size"),
            "initialisation": recipe.get("initialisation"),
            "weights": training.get("weights"),
            "training_steps": training.get("steps"),
            "selection": origin.checkpoint.get("selection"),
        },
        hashes={key: value for key, value in hashes.items() if value},
        provenance=provenance(),
        durations_s={**(durations_s or {}), "scoring": round(time.perf_counter() - start, 2)},
    )
