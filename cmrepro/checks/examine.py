"""Findings of files, and their table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmrepro.checkpoints.load import load_model
from cmrepro.checks.findings import Findings, causes
from cmrepro.checks.images import examine_images
from cmrepro.checks.records import examine_checkpoint, examine_record, examine_samples
from cmrepro.data import open_images
from cmrepro.files import DownloadError
from cmrepro.records import read_record
from cmrepro.sample_sets import read_provenance
from cmrepro.schema import to_builtins
from cmrepro.settings import Protocol


def examine(
    files: Sequence[str], protocol: Protocol, reference: str | None = None, device: str = "cpu"
) -> tuple[dict[str, Findings], list[str]]:
    """Findings by file, and an error for each file that cannot be examined."""
    findings, errors = {}, []
    for file in files:
        try:
            findings[file] = _examined(file, protocol, reference, device)
        except DownloadError:
            raise
        except (ValueError, OSError) as error:
            errors.append(" ".join(str(error).split()))
    return findings, errors


def _examined(file: str, protocol: Protocol, reference: str | None, device: str) -> Findings:
    path = Path(file)
    if path.suffix == ".json":
        return examine_record(read_record(path))
    is_diffusers = any(path.glob("**/diffusion_pytorch_model*"))
    if path.suffix in (".npz", ".npy", ".zip") or (path.is_dir() and not is_diffusers):
        images = open_images(file)
        samples = read_provenance(path, images)
        findings = examine_images(images, protocol, reference, device)
        return findings | examine_samples(samples, protocol)
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
