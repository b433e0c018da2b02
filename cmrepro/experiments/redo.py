"""A record made again: the commands that do it, and what they give beside what was recorded."""

import argparse
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cmrepro.checkpoints.io import bundled_checkpoints, read_info
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.data import images_sha256, open_images
from cmrepro.experiments.run import read_origin
from cmrepro.files import sha256
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_registry import bundled_references, registered_references
from cmrepro.records3 import HASHES, RELATIVE_TOLERANCE, RunRecord
from cmrepro.sampling import sampler_settings

Given = Mapping[str, Path | None]


def redo_commands(record: RunRecord, out: Path, given: Given) -> list[list[str]]:
    """The command lines, without "cmrepro", that make a record again in out/results/records.

    Args:
        record: What is to be made again.
        out: Folder for the sample set and the record.
        given: Files to use: `samples` (which then are not sampled again), `checkpoint`,
            `reference`, and `protocol` (a .toml), each None where the record's own is to be found.

    Raises:
        ValueError: The checkpoint, protocol or reference of the record is not here (says where it
            was looked for); the images are foreign and not given, or are others than the record's;
            or it was sampled in a way that the command line does not have.
    """
    made_by = shlex.split(record.provenance["command"])[1:]
    samples = given["samples"]
    if samples is not None:
        _require_images(record, samples)
        return [_evaluate_command(record, samples, out, given)]
    if not record.sampler and made_by[:1] == ["anchors"]:
        recorded = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        recorded.add_argument("--out")
        _, others = recorded.parse_known_args(made_by)
        return [[*others, "--out", str(out)]]
    samples = out / f"{record.id}.npz"
    return [
        [*_sample_command(record, given["checkpoint"]), "--out", str(samples)],
        _evaluate_command(record, samples, out, given),
    ]


def _require_images(record: RunRecord, samples: Path) -> None:
    source = open_images(samples, record.model)
    enough = source.num_images >= record.num_images
    found = images_sha256(source, record.num_images) if enough else f"of {source.num_images} only"
    if found != record.hashes["images"]:
        raise ValueError(
            f"the first {record.num_images} images of {samples} have sha256 {found}, those of "
            f"{record.id} have {record.hashes['images']}; give that set"
        )
    origin = read_origin(samples, source, check=False)  # the evaluation does, of all images
    if (origin.model, origin.nfe, origin.seed) != (record.model, record.nfe, record.seed):
        raise ValueError(
            f"no .json beside {samples} says that it was sampled as {record.id} was; leave "
            "--samples out to sample again"
        )


def _sample_command(record: RunRecord, given: Path | None) -> list[str]:
    sampler = record.sampler
    if not sampler:
        raise ValueError(
            f"{record.id} is of images that were not sampled here; give them with --samples: the "
            f"set '{record.model}' whose first {record.num_images} images have sha256 "
            f"{record.hashes['images']}"
        )
    checkpoint, path = _find_checkpoint(record, given)
    times = sampler["times"]
    steps = len(times) if sampler["algorithm"] == "heun" or len(times) == 1 else times
    fields = asdict(sampler_settings(read_info(path), steps, sampler["to_uint8"]))
    for key, value in json.loads(json.dumps(fields)).items():
        if value != sampler[key]:
            raise ValueError(
                f"{record.id} was sampled with {key} = {sampler[key]}, 'cmrepro sample' has "
                f"{value}; repeat it from Python"
            )
    options = {
        "steps": steps if isinstance(steps, int) else ",".join(map(repr, steps)),
        "num": sampler["num_images"],
        "seed": record.seed,
        "to-uint8": sampler["to_uint8"],
        "device": sampler["device"],
    }
    return ["sample", checkpoint, *_options(options)]


def _find_checkpoint(record: RunRecord, given: Path | None) -> tuple[str, Path]:
    """What to call the checkpoint of the record's name and checksum, and its file."""
    converted = {name: entry.converted for name, entry in released_checkpoints().items()}
    known = bundled_checkpoints() | converted
    beside = given or Path(record.checkpoint["file"])
    places = {str(beside): beside}
    if given is None and record.model in known:
        places = {record.model: known[record.model], **places}
    looked = []
    for name, path in places.items():
        if not path.is_file():
            looked.append(f"{path} (no such file)")
        elif sha256(path) != record.checkpoint["sha256"]:
            looked.append(f"{path} (another checksum)")
        elif path.stem != record.model:  # records are called by it
            looked.append(f"{path} (another name)")
        else:
            return name, path
    trained = record.checkpoint.get("origin", {}).get("command")
    raise ValueError(
        f"no checkpoint {record.model} with sha256 {record.checkpoint['sha256']}, of which "
        f"{record.id} is; looked at {', '.join(looked)}; give it with --checkpoint"
        + (f" (it was trained by: {trained})" if trained else "")
    )


def _evaluate_command(record: RunRecord, samples: Path, out: Path, given: Given) -> list[str]:
    name, reference = record.protocol["name"], record.reference["name"]
    protocol = json.loads(json.dumps(asdict(load_protocol(given["protocol"] or name))))
    if protocol != record.protocol:
        keys = sorted(protocol.keys() | record.protocol.keys())
        other = [key for key in keys if protocol.get(key) != record.protocol.get(key)]
        raise ValueError(
            f"protocol {name} has another {', '.join(other)} here than for {record.id}; install "
            f"cmrepro {record.provenance['cmrepro']}, or give the protocol's file with --protocol"
        )
    if not given["reference"] and reference not in bundled_references() | registered_references():
        raise ValueError(
            f"{record.id} was scored against '{reference}', which has no name here; give the file "
            f"with sha256 {record.reference['sha256']} with --reference"
        )
    options = {
        "protocol": given["protocol"] or name,
        "reference": given["reference"] or reference,
        "num-images": record.num_images,
        "name": record.model,
        "bootstrap": record.uncertainty.get("resamples", 0),
        "device": record.provenance["device"],
        "out": out,
    }
    return ["evaluate", str(samples), *_options(options)]


def _options(options: Mapping[str, Any]) -> list[str]:
    return [text for key, value in options.items() for text in (f"--{key}", str(value))]


class Redone(NamedTuple):
    """What came out beside what was recorded.

    Attributes:
        rows: `what`, `recorded`, `now`, `same` of each hash and score.
        other_platform: How machine and libraries differ; empty where they are the same.
        failed: The images differ on the same platform, or a score by more than
            `RELATIVE_TOLERANCE`.
    """

    rows: list[dict[str, Any]]
    other_platform: list[str]
    failed: bool


def compare_redone(recorded: RunRecord, now: RunRecord) -> Redone:
    """Hold a record made again against the one that it repeats."""
    there, here = _platform(recorded), _platform(now)
    other_platform = [
        f"{key} {there[key]} there, {here[key]} here" for key in there if there[key] != here[key]
    ]
    rows: list[dict[str, Any]] = []
    for what, a, b in (
        ("checkpoint", recorded.checkpoint.get("sha256"), now.checkpoint.get("sha256")),
        ("reference", recorded.reference["sha256"], now.reference["sha256"]),
        *((key, recorded.hashes.get(key), now.hashes.get(key)) for key in HASHES),
    ):
        if a or b:
            rows.append({"what": what, "recorded": a, "now": b, "same": _yes(a == b)})
    failed = recorded.hashes["images"] != now.hashes["images"] and not other_platform
    for metric, value in recorded.scores.items():
        same = math.isclose(value, now.scores[metric], rel_tol=RELATIVE_TOLERANCE)
        failed |= not same
        row = {"what": metric, "recorded": value, "now": now.scores[metric], "same": _yes(same)}
        rows.append(row)
    return Redone(rows, other_platform, failed)


def _platform(record: RunRecord) -> dict[str, Any]:
    """What the last bits of images depend on, but for the number of threads."""
    said = record.provenance
    return {
        "platform": said["platform"],
        "cpu": said["cpu"].rpartition(", ")[0],  # without the number of its cores
        "gpu": said["gpu"],
        **{name: said["packages"].get(name) for name in ("torch", "numpy", "scipy")},
    }


def _yes(same: bool) -> str:
    return "yes" if same else "no"
