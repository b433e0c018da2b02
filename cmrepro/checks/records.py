"""Faults that a provenance, checkpoint header or record states."""

from collections.abc import Mapping
from typing import Any

from cmrepro.checks.findings import Finding, Findings, Settings
from cmrepro.checks.images import too_few_images
from cmrepro.data import ImageSource
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.metrics.references import load_reference
from cmrepro.records import CheckpointInfo, RunRecord, SampleProvenance
from cmrepro.settings import Extractor, Metric, Protocol, Reference

MANIFOLD: tuple[Metric, Metric] = ("precision", "recall")


def contradiction(what: str, stated: object, expected: object) -> Finding | None:
    """A statement that differs from what is expected; None where either is missing."""
    if None in (stated, expected) or stated == expected:
        return None
    return Finding(measured=f"{what} {stated}", expected=str(expected))


def examine_checkpoint(info: CheckpointInfo | None) -> Findings:
    """Check the header of a checkpoint."""
    weights = info.training.weights if info and info.training else None
    online = weights if weights == "online" else None
    return {"online-weights": contradiction("weights:", online, "ema")}


def examine_samples(samples: SampleProvenance, protocol: Protocol) -> Findings:
    """Check the provenance of a sample set."""
    stated = samples.sampler.to_uint8 if samples.sampler else None
    expected = None if protocol.to_uint8 == "as given" else protocol.to_uint8
    rounding = contradiction("to_uint8:", stated, expected)
    return {"rounding": rounding, **examine_checkpoint(samples.checkpoint)}


def examine_record(record: RunRecord, images: ImageSource | None, settings: Settings) -> Findings:
    """Check a record.

    Args:
        record: The record.
        images: Its sample set, where there is one to score again.
        settings: Device.
    """
    name = record.protocol.name
    protocol = load_protocol(name) if name in protocol_names() else record.protocol
    training = record.checkpoint.training if record.checkpoint else None
    findings = examine_samples(record, protocol) | {
        "split": split(record.reference, training.dataset if training else None),
        "too-few-images": too_few_images(record.num_images, record.protocol.num_images),
        "extractor": extractor(record.protocol.extractor, record.reference, protocol.extractor),
    }
    if images is not None and set(MANIFOLD) <= record.scores.keys():
        task = Task(
            protocol.replace(metrics=MANIFOLD), load_reference(protocol), record.num_images
        )
        [scores] = score(images, [task], device=settings.device)
        findings["swapped-metrics"] = swapped_metrics(record.scores, scores.values)
    return findings


def split(reference: Reference, trained_on: str | None) -> Finding | None:
    """A reference of another split than that of the training, e.g. "cifar10-train"."""
    dataset, _, part = (trained_on or "").rpartition("-")
    if dataset != reference.dataset:
        return None
    return contradiction("reference of split", reference.split, part)


def extractor(used: Extractor, reference: Reference, expected: Extractor) -> Finding | None:
    """Features of another network, weights or resize than the protocol's."""
    return (
        contradiction("extractor", used.name, expected.name)
        or contradiction("weights", used.weights.checksum, expected.weights.checksum)
        or contradiction("resize", used.resize, expected.resize)
        or contradiction("reference of extractor", reference.extractor, expected.name)
    )


def swapped_metrics(
    recorded: Mapping[Any, float], measured: Mapping[Any, float]
) -> Finding | None:
    """Precision and recall of a record that are those of its images when swapped."""
    (p, r), (precision, recall) = ([x[m] for m in MANIFOLD] for x in (recorded, measured))
    if abs(p - recall) >= abs(p - precision) or abs(r - precision) >= abs(r - recall):
        return None
    return Finding(
        measured=f"precision {p:.3f}, recall {r:.3f}",
        expected=f"precision {precision:.3f}, recall {recall:.3f}",
    )
