"""A record examined: what it states, and whether its precision is that of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cmrepro.checks import statements
from cmrepro.checks.findings import Examination, Finding, Settings, beyond
from cmrepro.checks.images import features_of, own_model, resample, too_few_images
from cmrepro.checks.pixels import Images
from cmrepro.checks.statistics import reference_here
from cmrepro.data import ImageSource
from cmrepro.metrics.manifolds import manifold_scores
from cmrepro.metrics.protocols import load_protocol, protocol_names
from cmrepro.records3 import RunRecord

PRECISION_IMAGES = 200  # a precision is then known to 0.035


def swapped_metrics(scores: Mapping[str, float], inside: NDArray[np.bool_]) -> Finding | None:
    """Whether a record's recall is the precision of its images.

    Precision is a mean over generated images, so that some of them estimate it without bias.

    Args:
        scores: Of the record.
        inside: Of n of its images, or others of the same checkpoint, whether each lies in the
            ball of a real image. The limit is five standard errors of a share of one half.
    """
    measured = float(inside.mean())
    limit = 5 * 0.5 / len(inside) ** 0.5
    off = abs(scores["precision"] - measured)
    if abs(scores["recall"] - measured) > off:
        return None
    precision, recall = f"{scores['precision']:.3f}", f"{scores['recall']:.3f}"
    words = (
        f"precision of {len(inside):,} of these images is {measured:.3f}, the record has "
        f"precision {precision} and recall {recall}"
    )
    effect = f"precision {precision}, {recall} exchanged"
    return beyond("swapped-metrics", off, limit, words, f"within {limit:.3f}", effect)


def examine_record(
    record: RunRecord, images: ImageSource | None, settings: Settings
) -> Examination:
    """What is wrong with a record.

    Args:
        record: It.
        images: Its sample set, where that was given too; otherwise some images are sampled again
            where the checkpoint is here.
        settings: Their device; their protocol where the record's is not one of ours.
    """
    name = str(record.protocol.get("name"))
    protocol = load_protocol(name) if name in protocol_names() else settings.protocol
    own = replace(settings, protocol=protocol)
    reference = reference_here(own)
    examination = Examination()
    checkpoint, sampler = record.checkpoint, record.sampler
    direction = statements.direction(sampler, checkpoint.get("sigma_max"))
    asked = int(record.protocol.get("num_images", protocol.num_images))
    for cause, finding in {
        "other-split": statements.split(record.reference, record.comparable.get("dataset")),
        "too-few-images": too_few_images(record.num_images, asked, reference),
        "rounding": statements.rounding_stated(sampler, protocol.to_uint8),
        "time-direction": direction,
        "extractor": statements.extractor(record.protocol, record.reference, protocol.extractor),
    }.items():
        examination.add(cause, finding)
    if reference is None or not {"precision", "recall"} <= record.scores.keys():
        return examination
    some = _some_images(record, images, own) if direction is None else None
    if some is not None:
        scores = manifold_scores(
            features_of(some, own),
            reference.real_features(protocol, settings.device),
            neighborhood=protocol.manifold.neighborhood if protocol.manifold else 1,
        )
        finding = swapped_metrics(record.scores, scores.num_balls > 0)
        examination.add("swapped-metrics", finding)
    return examination


def _some_images(
    record: RunRecord, images: ImageSource | None, settings: Settings
) -> Images | None:
    """The first images of a record, given or sampled again; None where neither can be."""
    count = min(PRECISION_IMAGES, record.num_images)
    if images is not None:
        return next(images.batches(count))
    model = own_model(record.model, record.checkpoint, settings.device)
    if model is None or record.seed is None:
        return None
    return resample(model, record.sampler, count, record.seed)
