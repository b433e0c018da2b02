"""Causes of a wrong score, the evidence for them, and the standards of comparison."""

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrepro.data import ImageSource
from cmrepro.metrics.extractors import extract, load_extractor
from cmrepro.metrics.frechet import StreamingMoments, frechet_distance
from cmrepro.metrics.reference_files import ReferenceStatistics
from cmrepro.schema import Struct, read_toml
from cmrepro.settings import Protocol


class Cause(Struct, frozen=True):
    """A cause of causes.toml: its description and what to do."""

    description: str
    advice: str


class Finding(Struct, frozen=True, kw_only=True):
    """Evidence for a cause.

    Attributes:
        measured: Measurement or statement.
        expected: Its value for clean inputs.
        certain: False where clean inputs may, rarely, give the same.
        effect: Effect on the score, where it is measured.
    """

    measured: str
    expected: str
    certain: bool = True
    effect: str = "not measured"


Findings = dict[str, Finding | None]  # for each cause that was checked


@dataclass(frozen=True)
class Settings:
    """Standards of comparison.

    Attributes:
        protocol: Protocol of the scores.
        reference: Name or file of reference statistics; None: the protocol's.
        real: Real images that may have been copied; None: those of the reference.
        device: Device of the extractor.
    """

    protocol: Protocol
    reference: str | None = None
    real: ImageSource | None = None
    device: str = "cpu"

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, D) of images (N, H, W, 3) by the protocol's extractor."""
        return extract(images, load_extractor(self.protocol.extractor, self.device)).features


@functools.cache
def causes() -> dict[str, Cause]:
    """Causes by key."""
    return read_toml(dict[str, Cause], Path(str(resources.files(__package__) / "causes.toml")))


def fid(features: NDArray[np.float32], reference: ReferenceStatistics) -> float:
    """Fréchet distance of features (N, D) from reference statistics."""
    moments = StreamingMoments(len(reference.mu))
    moments.update(features)
    return frechet_distance(reference.mu, reference.sigma, *moments.mean_and_covariance())
