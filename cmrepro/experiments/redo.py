"""A record made again: the commands, and the result beside the record."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import asdict

from cmrepro.checkpoints.load import find_checkpoint
from cmrepro.data import images_sha256, open_images
from cmrepro.files import sha256
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import RELATIVE_TOLERANCE, RunRecord
from cmrepro.schema import to_builtins

Files = Mapping[str, Path | None]


def redo_commands(record: RunRecord, out: Path, files: Files) -> list[list[str]]:
    """Command lines, without "cmrepro", that make a record again in out/results/records.

    `files` are `samples` (sampling is left out), `checkpoint`, `reference` and `protocol` (a
    .toml), each None to find the record's by its name.
    """
    samples, command = files["samples"], shlex.split(record.provenance.command)[1:]
    if samples is None and record.sampler is None and command[:1] == ["anchors"]:
        at = command.index("--out") if "--out" in command else len(command)
        return [[*command[:at], *command[at + 2 :], "--out", str(out)]]
    commands = []
    if samples is None:
        samples = out / f"{record.id}.npz"
        commands.append([*_sample_command(record, files["checkpoint"]), "--out", str(samples)])
    elif (found := images_sha256(open_images(samples), record.num_images)) != record.hashes.images:
        found = f"the first {record.num_images} images of {samples} have sha256 {found}"
        expected = f"those of {record.id} have {record.hashes.images}"
        raise ValueError(f"{found}, {expected}; give that sample set")
    return [*commands, _evaluate_command(record, samples, out, files)]


def _sample_command(record: RunRecord, file: Path | None) -> list[str]:
    sampler, checkpoint = record.sampler, record.checkpoint
    if sampler is None or checkpoint is None:
        images = f"first {record.num_images} images have sha256 {record.hashes.images}"
        advice = f"give with --samples the set whose {images}"
        raise ValueError(f"{record.id} is of images from elsewhere; {advice}")
    name = str(file or record.model)
    path = find_checkpoint(name)
    if sha256(path) != checkpoint.sha256:
        training = checkpoint.training and checkpoint.training.provenance
        by = f" (it was trained by: {training.command})" if training else ""
        found = f"{name} is not the record's checkpoint, of sha256 {checkpoint.sha256[:10]}…"
        raise ValueError(f"{found}; give its file with --checkpoint{by}")
    times = sampler.times
    by_number = sampler.algorithm != "multistep" or len(times) == 1
    options = {
        "steps": len(times) - (sampler.algorithm == "euler")
        if by_number
        else ",".join(map(repr, times)),
        "num-images": record.num_sampled,
        "seed": record.seed,
        "to-uint8": sampler.to_uint8,
        "device": record.sampling_device,
        "precision": None if sampler.precision == "fp32" else sampler.precision,
        "batch-size": record.sampling_batch_size,
    }
    clipping = "--clip-denoised" if sampler.clip_denoised else "--no-clip-denoised"
    return ["sample", name, *_options(options), clipping]


def _evaluate_command(record: RunRecord, samples: Path, out: Path, files: Files) -> list[str]:
    name = files["protocol"] or record.protocol.name
    if (protocol := load_protocol(name)) != record.protocol:
        here, there = to_builtins(protocol), to_builtins(record.protocol)
        keys = ", ".join(key for key in here if here[key] != there[key])
        found = f"protocol {name} differs from that of {record.id} in {keys}"
        advice = f"install cmrepro {record.provenance.cmrepro}, or give its file with --protocol"
        raise ValueError(f"{found}; {advice}")
    options: dict[str, Any] = {
        "protocol": name,
        "reference": files["reference"] or record.reference.name,
        "num-images": record.num_images,
        "device": record.device,
        "out": out,
    }
    if record.checkpoint is None:
        options |= {"model": record.model, "nfe": record.nfe, "seed": record.seed}
    intervals = ["--intervals"] * bool(record.uncertainty)
    return ["evaluate", str(samples), *_options(options), *intervals]


def _options(options: Mapping[str, Any]) -> list[str]:
    stated = {key: str(value) for key, value in options.items() if value is not None}
    return [word for key, value in stated.items() for word in (f"--{key}", value)]


class Redone(NamedTuple):
    """A record made again beside the original."""

    rows: list[dict[str, Any]]  # `what`, `recorded`, `now`, `same` of each hash and score
    other_platform: list[str]  # differences of machine and libraries
    failed: bool  # images differ on the same platform, or a score by > `RELATIVE_TOLERANCE`


def compare_redone(recorded: RunRecord, now: RunRecord) -> Redone:
    """Compare a record made again with the original."""
    there, here = _platform(recorded), _platform(now)
    platform = [f"{k} {there[k]} there, {here[k]} here" for k in here if there[k] != here[k]]
    before, after = _results(recorded), _results(now)
    pairs = {k: (before[k], after[k]) for k in before if (before[k], after[k]) != (None, None)}
    decisive = now.scores if platform else ["images", *now.scores]
    rows, failed = [], False
    for key, (a, b) in pairs.items():
        close = key in now.scores and math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
        same = close or a == b
        rows.append({"what": key, "recorded": a, "now": b, "same": "yes" if same else "no"})
        failed |= not same and key in decisive
    return Redone(rows, platform, failed)


def _results(record: RunRecord) -> dict[str, Any]:
    checkpoint = record.checkpoint and record.checkpoint.sha256
    checksums = {"checkpoint": checkpoint, "reference": record.reference.sha256}
    return checksums | asdict(record.hashes) | record.scores


def _platform(record: RunRecord) -> dict[str, Any]:
    """Machine and libraries, on which the last bits of images depend."""
    provenance = record.provenance
    return {
        "platform": provenance.platform,
        "cpu": provenance.cpu.rpartition(", ")[0],  # without the number of its cores
        "gpu": provenance.gpu,
        **{name: provenance.packages.get(name) for name in ("torch", "numpy", "scipy")},
    }
