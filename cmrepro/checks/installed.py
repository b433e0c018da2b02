"""Installed packages, devices, and registered files on this machine."""

import importlib.metadata
import platform
from pathlib import Path

import torch

from cmrepro import __version__
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.files import RECORDED, cache_folder, expected_checksum, require_checksum
from cmrepro.metrics.extractors import weights_file
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.metrics.references import registered_references
from cmrepro.provenance import PACKAGES, cpu_name


def installed_rows() -> list[dict[str, object]]:
    """One row a package, device and registered file; nothing is downloaded."""
    rows = [("package", "cmrepro", __version__), ("package", "Python", platform.python_version())]
    rows += [("package", name, importlib.metadata.version(name)) for name in PACKAGES]
    rows.append(("device", "cpu", cpu_name()))
    for i in range(torch.cuda.device_count()):
        rows.append(("device", f"cuda:{i}", torch.cuda.get_device_name(i)))
    rows.append(("folder", "cache", str(cache_folder())))
    for name, entry in released_checkpoints().items():
        rows.append(("checkpoint", name, file_state(entry.downloaded, entry.checksum)))
    for name, reference in registered_references().items():
        rows.append(("reference", name, file_state(reference.path, RECORDED)))
    protocols = [load_protocol(name) for name in protocol_names()]
    extractors = [x for p in protocols for x in (p.extractor, p.logits_extractor)]
    for weights, extractor in {extractor.weights: extractor for extractor in extractors}.items():
        cached = cache_folder() / "weights" / weights.file
        path = cached if weights.url else weights_file(extractor)
        rows.append(("weights", weights.name, file_state(path, weights.checksum)))
    return [{"kind": kind, "name": name, "state": state} for kind, name, state in rows]


def file_state(path: Path, checksum: str) -> str:
    """Presence of a file, and agreement with its published or recorded checksum."""
    if not path.is_file():
        return "missing"
    if (expected := expected_checksum(path, checksum)) is None:
        return "present, checksum not recorded yet"
    try:
        require_checksum(path, expected, "")
    except ValueError as error:
        return f"present, wrong checksum: {error}"
    return "present, checksum right"
