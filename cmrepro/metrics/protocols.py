"""Protocols: named, versioned ways to score a sample set (protocols.toml)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from cmrepro.names import unknown


@dataclass(frozen=True)
class ExtractorSettings:
    """What fixes the features of an extractor.

    Attributes:
        name: Name of the extractor.
        weights_sha256: SHA-256 of the weights file, hexadecimal.
        image_size: Side length in px that images are brought to.
        resize: How they are brought there; "bilinear" (antialiased when shrinking).
        mean: Subtracted from pixels (0-255).
        std: Divides pixels after that.
        feature_dim: D, the number of features.
        num_logits: K, the number of classes.
    """

    name: str
    weights_sha256: str
    image_size: int
    resize: str
    mean: float
    std: float
    feature_dim: int
    num_logits: int


@dataclass(frozen=True)
class Protocol:
    """A named, versioned way to score a sample set.

    Attributes:
        name: Name of the protocol.
        version: Raised whenever a change moves a score.
        extractor: Name of the extractor.
        image_size: Side length in px that the extractor brings images to.
        resize: How it does so.
        num_images: Number of images that a score needs.
        reference: Name of the reference statistics.
        reference_features: M, number of real images whose features are stored.
        reference_seed: Seed of their choice.
        is_splits: Number of splits of the inception score.
        is_shuffle: Whether images are shuffled before splitting.
        is_seed: Seed of that shuffle.
        kid_subsets: Number of random subsets of the kernel distance.
        kid_subset_size: Number of images in each.
        kid_degree: Degree of its polynomial kernel.
        kid_coef0: Constant of its polynomial kernel.
        kid_seed: Seed of the subsets.
        neighborhood: k of precision and recall: a ball reaches to the k-th nearest neighbour.
    """

    name: str
    version: int
    extractor: str
    image_size: int
    resize: str
    num_images: int
    reference: str
    reference_features: int
    reference_seed: int
    is_splits: int
    is_shuffle: bool
    is_seed: int
    kid_subsets: int
    kid_subset_size: int
    kid_degree: int
    kid_coef0: float
    kid_seed: int
    neighborhood: int


def protocol_names() -> list[str]:
    """Names of all protocols, sorted."""
    return sorted(_tables()["protocols"])


def load_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: If the name is unknown, or its table has an unknown or missing key.
    """
    tables = _tables()["protocols"]
    if name not in tables:
        raise ValueError(unknown("protocol", name, tables))
    return parse_protocol(name, tables[name])


def parse_protocol(name: str, table: Mapping[str, Any]) -> Protocol:
    """A protocol from its TOML table; `image_size` and `resize` come from its extractor.

    Raises:
        ValueError: If the extractor is unknown, or a key is unknown, missing or of a wrong type.
    """
    extractor = load_extractor_settings(str(table.get("extractor")))
    derived = {"image_size": extractor.image_size, "resize": extractor.resize}
    twice = sorted(derived.keys() & table.keys())
    if twice:
        raise ValueError(
            f"protocol {name!r} sets {', '.join(twice)}, which its extractor fixes; remove it"
        )
    values = {**table, **derived}
    _check_keys(f"protocol {name!r}", values, Protocol)
    return Protocol(name=name, **values)


def load_extractor_settings(name: str) -> ExtractorSettings:
    """The settings of the extractor of that name.

    Raises:
        ValueError: If the name is unknown, or its table has an unknown or missing key.
    """
    tables = _tables()["extractors"]
    if name not in tables:
        raise ValueError(unknown("extractor", name, tables))
    _check_keys(f"extractor {name!r}", tables[name], ExtractorSettings)
    return ExtractorSettings(name=name, **tables[name])


@functools.cache
def _tables() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("protocols.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _check_keys(
    owner: str, values: Mapping[str, Any], settings: type[Protocol] | type[ExtractorSettings]
) -> None:
    """Refuse keys that are unknown, missing, or of another type than the dataclass states."""
    types = {field.name: str(field.type) for field in fields(settings) if field.name != "name"}
    for key in values:
        if key not in types:
            raise ValueError(f"{owner}: {unknown('key', key, types)}")
    missing = sorted(types.keys() - values.keys())
    if missing:
        raise ValueError(f"{owner} lacks {', '.join(missing)}; add it to protocols.toml")
    for key, value in values.items():
        if type(value).__name__ != types[key]:
            got = type(value).__name__
            raise ValueError(f"{owner}: {key} = {value!r} is {got}, must be {types[key]}")
