"""What is installed, which devices there are, and which registered files are here."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

from cmrepro import __version__
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.files import (
    RECORDED,
    cache_folder,
    checksum_record,
    recorded_checksum,
    require_checksum,
)
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.metrics.reference_registry import registered_references
from cmrepro.metrics.weights import weights_file
from cmrepro.provenance import PACKAGES, cpu_name

Rows = list[dict[str, object]]


def installed_rows() -> Rows:
    """One row a package, a device, and a file that a registry names; nothing is downloaded."""
    packages = {"cmrepro": __version__, "Python": platform.python_version()}
    packages |= {name: importlib.metadata.version(name) for name in PACKAGES}
    rows: Rows = [_row("package", name, version) for name, version in packages.items()]
    rows.append(_row("device", "cpu", cpu_name()))
    rows += [
        _row("device", f"cuda:{i}", torch.cuda.get_device_name(i))
        for i in range(torch.cuda.device_count())
    ]
    rows.append(_row("folder", "cache", str(cache_folder())))
    return rows + _cached()


def _cached() -> Rows:
    rows = [
        _row("checkpoint", name, file_state(entry.downloaded, entry.checksum))
        for name, entry in released_checkpoints().items()
    ]
    rows += [
        _row("reference", name, file_state(entry.path, RECORDED))
        for name, entry in registered_references().items()
    ]
    protocols = [load_protocol(name) for name in protocol_names()]
    extractors = [x for p in protocols for x in (p.extractor, p.logits_extractor)]
    for weights in dict.fromkeys(extractor.weights for extractor in extractors):
        if weights.url is None:
            [first, *_] = [x for x in extractors if x.weights == weights]
            path = weights_file(first)
        else:
            path = cache_folder() / "weights" / weights.file
        rows.append(_row("weights", weights.name, file_state(path, weights.checksum)))
    return rows


def file_state(path: Path, checksum: str) -> str:
    """Whether a file is here, and whether its checksum is right, wrong or not recorded yet.

    Args:
        path: Where the file lies once it is there.
        checksum: Published, or `RECORDED`: then that of PATH.sha256.
    """
    if not path.is_file():
        return "not here"
    if checksum == RECORDED:
        if not checksum_record(path).is_file():
            return "here, checksum not recorded yet"
        checksum = recorded_checksum(path)
    try:
        require_checksum(path, checksum, "")
    except ValueError as error:
        return f"here, checksum wrong: {error}"
    return "here, checksum right"


def _row(kind: str, name: str, state: str) -> dict[str, object]:
    return {"kind": kind, "name": name, "state": state}
