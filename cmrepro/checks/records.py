"""Faults that a provenance, checkpoint header or record states."""

from cmrepro.checks.findings import Finding, Findings, finding_if, too_few_images
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.records import CheckpointInfo, RunRecord, SampleProvenance
from cmrepro.settings import Protocol


def contradiction(what: str, stated: object, expected: object) -> Finding | None:
    """A statement that differs from what is expected; None where either is missing."""
    differs = None not in (stated, expected) and stated != expected
    return finding_if(differs, f"{what} {stated}", str(expected))


def examine_checkpoint(info: CheckpointInfo | None) -> Findings:
    """Check the header of a checkpoint."""
    weights = info.training.weights if info and info.training else None
    return {"online-weights": finding_if(weights == "online", "weights: online", "ema")}


def examine_samples(samples: SampleProvenance, protocol: Protocol) -> Findings:
    """Check the provenance of a sample set."""
    stated = samples.sampler.to_uint8 if samples.sampler else None
    expected = None if protocol.to_uint8 == "as given" else protocol.to_uint8
    rounding = contradiction("to_uint8:", stated, expected)
    return {"rounding": rounding, **examine_checkpoint(samples.checkpoint)}


def examine_record(record: RunRecord) -> Findings:
    """Check a record."""
    name, reference, used = record.protocol.name, record.reference, record.protocol.extractor
    protocol = load_protocol(name) if name in protocol_names() else record.protocol
    expected = protocol.extractor
    training = record.checkpoint.training if record.checkpoint else None
    dataset, _, part = (training.dataset if training else "").rpartition("-")  # "cifar10-train"
    expected_split = part if dataset == reference.dataset else None
    return examine_samples(record, protocol) | {
        "split": contradiction("reference of split", reference.split, expected_split),
        "too-few-images": too_few_images(record.num_images, record.protocol.num_images),
        "extractor": contradiction("extractor", used.name, expected.name)
        or contradiction("weights", used.weights.checksum, expected.weights.checksum)
        or contradiction("resize", used.resize, expected.resize)
        or contradiction("reference of extractor", reference.extractor, expected.name),
    }
