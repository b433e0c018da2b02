"""Kinds of files, their findings, and the table of both."""

import contextlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cmrepro.checkpoints.load import load_model
from cmrepro.checks.findings import Findings, Settings, causes
from cmrepro.checks.images import examine_images
from cmrepro.checks.records import examine_checkpoint, examine_record, examine_samples
from cmrepro.checks.statistics import examine_statistics
from cmrepro.data import ImageSource, images_sha256, open_images
from cmrepro.files import DownloadError
from cmrepro.records import read_record
from cmrepro.sampling import read_provenance
from cmrepro.schema import to_builtins

Kind = Literal["sample set", "checkpoint", "statistics", "record"]


def kind_of(file: str) -> Kind:
    """Kind of a file, by its ending and its arrays; everything else is a checkpoint's name."""
    path = Path(file)
    if path.suffix == ".json":
        return "record"
    if path.suffix in (".pkl", ".pickle"):
        return "statistics"
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if "mu.npy" in archive.namelist():
            return "statistics"
    is_images = path.is_dir() and not any(path.glob("**/diffusion_pytorch_model*"))
    return "sample set" if is_images or path.suffix in (".npz", ".npy", ".zip") else "checkpoint"


def examine(files: Sequence[str], settings: Settings) -> tuple[dict[str, Findings], list[str]]:
    """Findings by file, and an error for each file that cannot be examined."""
    sets: list[ImageSource] = []
    findings, errors = {}, []
    # Records last: by then the sample sets of their images are open.
    for file in sorted(files, key=lambda file: kind_of(file) == "record"):
        try:
            findings[file] = _examined(file, sets, settings)
        except DownloadError:
            raise
        except (ValueError, OSError) as error:
            errors.append(" ".join(str(error).split()))
    return findings, errors


def _examined(file: str, sets: list[ImageSource], settings: Settings) -> Findings:
    match kind_of(file):
        case "sample set":
            sets.append(images := open_images(file))
            samples = read_provenance(Path(file), images)
            return examine_images(images, settings) | examine_samples(samples, settings.protocol)
        case "record":
            record = read_record(Path(file))
            count, checksum = record.num_images, record.hashes.images
            scored = (x for x in sets if images_sha256(x, min(count, x.num_images)) == checksum)
            return examine_record(record, next(scored, None), settings)
        case "statistics":
            return examine_statistics(file, settings)
        case "checkpoint":
            return examine_checkpoint(load_model(file).info)


def finding_rows(findings: Mapping[str, Findings]) -> list[dict[str, object]]:
    """One row a finding, the certain ones first, or one row for a good file."""
    rows: list[dict[str, object]] = []
    for file, checked in findings.items():
        found = [(causes()[key], finding) for key, finding in checked.items() if finding]
        for cause, finding in sorted(found, key=lambda pair: pair[1].certainty):
            row = {"file": file, "finding": cause.description, **to_builtins(finding)}
            rows.append(row | {"advice": cause.advice})
        if not found:
            names = "; ".join(causes()[key].description for key in checked)
            rows.append({"file": file, "finding": "none: good", "measured": f"no sign of {names}"})
    return rows
