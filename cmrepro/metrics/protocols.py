"""Protocols: named, versioned ways to score a sample set (protocols.toml)."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from cmrepro.files import RECORDED
from cmrepro.schema import unknown

NETWORKS = ("efficientnet-lite0", "inception-2015", "inception-torchscript", "dinov2")
RESIZES = ("bilinear", "tensorflow1-bilinear", "pytorch-bilinear", "pil-bicubic")
ROUNDINGS = ("round", "truncate", "as given")
_CHECKSUM = re.compile("sha256:[0-9a-f]{64}|sha256-prefix:[0-9a-f]{8,64}")

_STORED = ("reference_features", "reference_seed")
_NEIGHBOURS = ("neighborhood", *_STORED)
# metric -> the settings that it needs. Beside them IS has is_splits or is_split_size.
METRICS: dict[str, tuple[str, ...]] = {
    "fid": (),
    "sfid": (),
    "is": ("is_shuffle",),
    "kid": ("kid_subsets", "kid_subset_size", "kid_degree", "kid_coef0", "kid_seed", *_STORED),
    "precision": _NEIGHBOURS,
    "recall": _NEIGHBOURS,
    "density": _NEIGHBOURS,
    "coverage": _NEIGHBOURS,
}

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class WeightsSettings:
    """A file of network weights.

    Attributes:
        name: Its key in [weights] of protocols.toml.
        file: Name of the file, in the package or in the cache's folder `weights`.
        checksum: "sha256:…", "sha256-prefix:…" (the first digits, where no more is published),
            or "recorded at first download".
        source: Who publishes it, in one line.
        package: Python package that holds the file, by its import name; None for a download.
        url: Address of a download; None for a file in a package.
    """

    name: str
    file: str
    checksum: str
    source: str
    package: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class ExtractorSettings:
    """What fixes the features of an extractor.

    Attributes:
        name: Name of the extractor.
        network: One of `NETWORKS`.
        weights: File with its weights.
        image_size: Side length in px that images are brought to.
        resize: How they are brought there: "bilinear" (half-pixel centres, antialiased when
            shrinking), "tensorflow1-bilinear" (corner-aligned origin, no antialiasing),
            "pytorch-bilinear" (half-pixel centres, no antialiasing), or "pil-bicubic" (Pillow on
            float32 channels, antialiased when shrinking, clipped to 0-255, not rounded).
        mean: Subtracted from pixels (0-255), one value for each of red, green, blue.
        std: Divides pixels after that, likewise.
        feature_dim: D, the number of features.
        num_logits: K, the number of class logits; 0 where it gives none.
        spatial_dim: Number of spatial features (for sFID); 0 where it gives none.
    """

    name: str
    network: str
    weights: WeightsSettings
    image_size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    feature_dim: int
    num_logits: int
    spatial_dim: int


@dataclass(frozen=True)
class Protocol:
    """A named, versioned way to score a sample set.

    Settings of metrics that the protocol does not have are None.

    Attributes:
        name: Name of the protocol.
        version: Raised whenever a change moves a score.
        source: Whose way of scoring it is, in one line.
        extractor: Gives the features of every metric, and the logits of IS unless `is_extractor`
            is set.
        to_uint8: How its tools turn [-1, 1] into pixels: "round", "truncate", or "as given"
            where they take image files only. Sample sets hold pixels already.
        num_images: Number of images that a score needs.
        metrics: Names of its metrics, of `METRICS`.
        reference: Name of the reference statistics used unless others are given.
        dataset: The only data set that it is defined for, with its split, e.g. "cifar10-train".
        reference_features: M, number of real images whose features are compared with.
        reference_seed: Seed of their choice.
        is_extractor: Gives the logits of IS, where that is another one.
        is_splits: Number of parts of the inception score.
        is_split_size: Images in each of its parts; exactly one of the two is set.
        is_shuffle: Whether images are shuffled before they are parted.
        is_seed: Seed of that shuffle.
        kid_subsets: Number of random subsets of the kernel distance.
        kid_subset_size: Number of images in each.
        kid_degree: Degree of its polynomial kernel.
        kid_coef0: Constant of its polynomial kernel.
        kid_seed: Seed of the subsets.
        neighborhood: k of precision, recall, density and coverage: a ball reaches to the k-th
            nearest neighbour.
    """

    name: str
    version: int
    source: str
    extractor: ExtractorSettings
    to_uint8: str
    num_images: int
    metrics: tuple[str, ...]
    reference: str
    dataset: str | None = None
    reference_features: int | None = None
    reference_seed: int | None = None
    is_extractor: ExtractorSettings | None = None
    is_splits: int | None = None
    is_split_size: int | None = None
    is_shuffle: bool | None = None
    is_seed: int | None = None
    kid_subsets: int | None = None
    kid_subset_size: int | None = None
    kid_degree: int | None = None
    kid_coef0: float | None = None
    kid_seed: int | None = None
    neighborhood: int | None = None


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    return sorted(_built_in()["protocols"])


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by its name, or from a file of one's own.

    Args:
        name: One of `protocol_names`, or the path of a .toml file with one table
            [protocols.NAME]. Its tables [extractors.NAME] and [weights.NAME] add to those that
            come with the package.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name is unknown, the file is no such file, or a table has a key that is
            unknown, missing, not used or of a wrong type.
    """
    if Path(name).suffix == ".toml":
        return _parse_protocol(*_with_file(Path(name)))
    protocols = _built_in()["protocols"]
    if name not in protocols:
        raise ValueError(f"{unknown('protocol', str(name), protocols)}, or a .toml file")
    return _parse_protocol(str(name), _built_in())


def load_extractor_settings(name: str) -> ExtractorSettings:
    """The settings of the extractor of that name, of those that come with the package.

    Raises:
        ValueError: If the name is unknown, or its table has an unknown or missing key.
    """
    return _parse_extractor(name, _built_in())


def _parse_protocol(name: str, tables: Tables) -> Protocol:
    owner = f"protocol {name!r}"
    values = _typed(owner, tables["protocols"][name], Protocol)
    _check_choice(owner, "to_uint8", values["to_uint8"], ROUNDINGS)
    _check_metrics(owner, values)
    extractor = _parse_extractor(values["extractor"], tables)
    other = values.get("is_extractor")
    is_extractor = _parse_extractor(other, tables) if other else None
    if "is" in values["metrics"] and not (is_extractor or extractor).num_logits:
        raise ValueError(
            f"{owner}: {(is_extractor or extractor).name} gives no logits for is; "
            "set is_extractor, or remove is"
        )
    if "sfid" in values["metrics"] and not extractor.spatial_dim:
        raise ValueError(
            f"{owner}: {extractor.name} gives no spatial features for sfid; "
            "choose an extractor with spatial_dim, or remove sfid"
        )
    return Protocol(name=name, **(values | {"extractor": extractor, "is_extractor": is_extractor}))


def _parse_extractor(name: str, tables: Tables) -> ExtractorSettings:
    if name not in tables["extractors"]:
        raise ValueError(unknown("extractor", name, tables["extractors"]))
    owner = f"extractor {name!r}"
    values = _typed(owner, tables["extractors"][name], ExtractorSettings)
    _check_choice(owner, "network", values["network"], NETWORKS)
    _check_choice(owner, "resize", values["resize"], RESIZES)
    for key in ("mean", "std"):
        if len(values[key]) != 3:
            raise ValueError(
                f"{owner}: {key} has {len(values[key])} values, must have 3: red, green, blue"
            )
    values["weights"] = _parse_weights(values["weights"], tables)
    return ExtractorSettings(name=name, **values)


def _parse_weights(name: str, tables: Tables) -> WeightsSettings:
    if name not in tables["weights"]:
        raise ValueError(unknown("weights", name, tables["weights"]))
    owner = f"weights {name!r}"
    values = _typed(owner, tables["weights"][name], WeightsSettings)
    if ("package" in values) == ("url" in values):
        raise ValueError(f"{owner} must have a package or a url, and not both")
    if values["checksum"] != RECORDED and not _CHECKSUM.fullmatch(values["checksum"]):
        raise ValueError(
            f"{owner}: checksum is {values['checksum']!r}, allowed are 'sha256:' with 64 digits, "
            f"'sha256-prefix:' with at least 8, or '{RECORDED}'"
        )
    if "package" in values and values["checksum"] == RECORDED:
        raise ValueError(f"{owner}: a file of a package is not downloaded; give its checksum")
    return WeightsSettings(name=name, **values)


@functools.cache
def _built_in() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("protocols.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _with_file(path: Path) -> tuple[str, Tables]:
    """The name of the one protocol in a file, and the built-in tables with those of the file."""
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no protocol file at {path}; check the path") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as TOML ({error}); correct it") from error
    merged = {kind: dict(tables) for kind, tables in _built_in().items()}
    for kind, tables in own.items():
        if kind not in merged or not isinstance(tables, dict):
            raise ValueError(f"{path}: {unknown('table', kind, merged)}")
        for name, table in tables.items():
            if name in merged[kind]:
                raise ValueError(
                    f"{path}: {kind}.{name} comes with the package; choose another name"
                )
            if not isinstance(table, dict):
                raise ValueError(f"{path}: {kind}.{name} is {table!r}, must be a table")
            merged[kind][name] = table
    protocols = list(own.get("protocols", {}))
    if len(protocols) != 1:
        raise ValueError(
            f"{path} has {len(protocols)} tables [protocols.NAME], must have one; "
            "give each protocol a file of its own"
        )
    return protocols[0], merged


def _typed(
    owner: str,
    table: Mapping[str, Any],
    settings: type[Protocol] | type[ExtractorSettings] | type[WeightsSettings],
) -> dict[str, Any]:
    """The values of a table, lists as tuples, with no key unknown, missing or of a wrong type."""
    known = {field.name: field for field in fields(settings) if field.name != "name"}
    for key in table:
        if key not in known:
            raise ValueError(f"{owner}: {unknown('key', key, known)}")
    required = {key for key, field in known.items() if field.default is MISSING}
    if missing := sorted(required - table.keys()):
        raise ValueError(f"{owner} lacks {', '.join(missing)}; add it to its table")
    values = {}
    for key, value in table.items():
        annotation = str(known[key].type).removesuffix(" | None")
        # A TOML table names other tables; it has lists where Python has tuples.
        kind = "str" if annotation.endswith("Settings") else annotation
        element = kind.removeprefix("tuple[").removesuffix(", ...]")
        parts = value if isinstance(value, list) and element != kind else [value]
        if (element != kind) != isinstance(value, list) or any(
            type(part).__name__ != element for part in parts
        ):
            allowed = kind if element == kind else f"a list of {element}"
            raise ValueError(
                f"{owner}: {key} = {value!r} is {type(value).__name__}, must be {allowed}"
            )
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def _check_metrics(owner: str, values: Mapping[str, Any]) -> None:
    """Refuse unknown metrics, and settings that they lack or do not use."""
    metrics = values["metrics"]
    if not metrics or len(set(metrics)) < len(metrics):
        raise ValueError(f"{owner}: metrics is {list(metrics)}, must be one or more, each once")
    for metric in metrics:
        _check_choice(owner, "metric", metric, tuple(METRICS))
    needed = {key for metric in metrics for key in METRICS[metric]}
    optional = set()
    if "is" in metrics:
        parts = {"is_splits", "is_split_size"} & values.keys()
        if len(parts) != 1:
            raise ValueError(
                f"{owner} sets {' and '.join(sorted(parts)) or 'no parts of is'}, must set one of "
                "is_splits and is_split_size"
            )
        needed |= parts | ({"is_seed"} if values.get("is_shuffle") else set())
        optional.add("is_extractor")
    if missing := sorted(needed - values.keys()):
        raise ValueError(f"{owner} lacks {', '.join(missing)}; add it to its table")
    settings = {field.name for field in fields(Protocol) if field.default is None} - {"dataset"}
    if unused := sorted((settings & values.keys()) - needed - optional):
        raise ValueError(
            f"{owner} sets {', '.join(unused)}, which its metrics {', '.join(metrics)} do not "
            "use; remove it"
        )


def _check_choice(owner: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {unknown(key, value, allowed)}")
