"""The record of one run: what was sampled, how it was scored, what came out (standard library).

One run is one JSON file. Its keys are the fields of `RunRecord`; a record of another schema, with
a missing key or an impossible score is refused.
"""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrepro.files import atomic_path

SCHEMA = "cmrepro-record-2"
SCORE_RANGES = {
    "fid": (-1e-6, math.inf),  # 0 up to rounding for identical images
    "sfid": (-1e-6, math.inf),
    "is": (1.0, math.inf),
    "kid": (-math.inf, math.inf),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, math.inf),
    "coverage": (0.0, 1.0),
}


@dataclass(frozen=True)
class RunRecord:
    """One sample set under one protocol.

    Attributes:
        model: Name of the checkpoint, or of the sample set where that is all that is known.
        nfe: Network evaluations an image; None for images that no network here made.
        seed: Of the noise; None likewise.
        num_images: Images scored.
        protocol: Every field of the protocol, its name and version among them.
        reference: Name, checksum and data set of the reference statistics.
        scores: Value by metric, see `SCORE_RANGES`.
        uncertainty: How far the scores of this one set can be trusted, where it was asked for:
            `intervals` (95 %, bootstrap over images) by metric, `fid_by_num_images` and
            `fid_infinity`, its extrapolation.
        warnings: What limits the scores' meaning, one sentence each.
        checkpoint: Checksum, network, recipe and origin of the checkpoint; empty without one.
        sampler: Algorithm, times, how images became uint8; empty for foreign images.
        comparable: What must agree for two records to be compared: scale, images seen, global
            batch, initialisation, weights, steps, selection.
        hashes: SHA-256 of noise, images and features.
        provenance: Command, commit, versions, machine.
        durations_s: Seconds by stage.
        schema: `SCHEMA`.
    """

    model: str
    nfe: int | None
    seed: int | None
    num_images: int
    protocol: dict[str, Any]
    reference: dict[str, Any]
    scores: dict[str, float]
    uncertainty: dict[str, Any]
    warnings: list[str]
    checkpoint: dict[str, Any]
    sampler: dict[str, Any]
    comparable: dict[str, Any]
    hashes: dict[str, str]
    provenance: dict[str, Any]
    durations_s: dict[str, float]
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"got a record of schema '{self.schema}', allowed is '{SCHEMA}'")
        if self.num_images < 1:
            raise ValueError(f"got num_images = {self.num_images}, allowed is 1 or more")
        for metric, value in self.scores.items():
            if metric not in SCORE_RANGES:
                raise ValueError(f"unknown metric '{metric}'; known: {', '.join(SCORE_RANGES)}")
            low, high = SCORE_RANGES[metric]
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"got {metric} = {value}, allowed is {low:g} to {high:g}")

    @property
    def id(self) -> str:
        """File name without ending: model, evaluations, protocol, count, seed."""
        parts = [self.model, f"{self.protocol['name']}-v{self.protocol['version']}"]
        if self.nfe is not None:
            parts.insert(1, f"nfe{self.nfe}")
        parts.append(f"n{self.num_images}")
        if self.seed is not None:
            parts.append(f"seed{self.seed}")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `record` to folder/ID.json and return that path."""
    path = folder / f"{record.id}.json"
    with atomic_path(path) as temporary:
        text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_record(path: Path) -> RunRecord:
    """The record in a file.

    Raises:
        ValueError: Not JSON, keys missing or unknown, another schema, an impossible score.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a record ({error}); run the evaluation again") from error
    known = {field.name for field in dataclasses.fields(RunRecord)}
    if not isinstance(fields, dict) or fields.keys() != known:
        keys = fields.keys() if isinstance(fields, dict) else set()
        raise ValueError(
            f"{path} is not a record of schema '{SCHEMA}': missing keys "
            f"{sorted(known - keys)}, unknown keys {sorted(keys - known)}"
        )
    try:
        return RunRecord(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a folder, in the order of their file names.

    Raises:
        ValueError: None there, or one is refused, or a file's name is not its record's.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"no records in {folder}; make some with 'cmrepro reproduce cifar10'")
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if path.stem != record.id:
            raise ValueError(f"{path} holds the record '{record.id}'; rename the file")
    return records
