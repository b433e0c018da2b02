"""Protocols: named, versioned ways to score a sample set (protocols.toml)."""

from pathlib import Path
from typing import Any

from msgspec import field

from cmrepro.schema import Struct, convert, lookup, read_toml, unknown
from cmrepro.settings import Extractor, Protocol

Tables = dict[str, dict[str, Any]]  # by name


class _File(Struct, frozen=True, kw_only=True):
    """A protocol file."""

    weights: Tables = field(default_factory=dict)
    extractors: Tables = field(default_factory=dict)
    protocols: Tables = field(default_factory=dict)


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    return sorted(_built_in().protocols)


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by name, or the only one of a .toml file, whose tables add to the package's."""
    tables = _built_in()
    if Path(name).suffix == ".toml":
        added, merged = read_toml(_File, Path(name)), {}
        for kind in ("weights", "extractors", "protocols"):
            known, new = getattr(tables, kind), getattr(added, kind)
            if taken := sorted(known.keys() & new.keys()):
                raise ValueError(f"{name}: {kind}.{taken[0]} comes with the package; rename it")
            merged[kind] = known | new
        if len(added.protocols) != 1:
            got = f"{name} has {len(added.protocols)} tables [protocols.NAME]"
            raise ValueError(f"{got}, must have one; give each protocol a file of its own")
        [name], tables = added.protocols, _File(**merged)
    elif name not in tables.protocols:
        raise ValueError(f"{unknown('protocol', str(name), tables.protocols)}, or a .toml file")
    table = _resolved({"name": name, **tables.protocols[str(name)]}, tables)
    return convert(Protocol, table, f"protocol '{name}'")


def load_extractor_settings(name: str) -> Extractor:
    """The settings of an extractor that comes with the package."""
    table = _resolved({"extractor": name}, _built_in())["extractor"]
    return convert(Extractor, table, f"extractor '{name}'")


def _resolved(table: dict[str, Any], tables: _File) -> dict[str, Any]:
    """A table, with the tables of extractors and weights in the place of their names."""
    named, resolved = {"extractor": tables.extractors, "weights": tables.weights}, dict(table)
    for key, value in table.items():
        if key in named:
            value = {"name": value, **lookup(key, str(value), named[key])}
        if isinstance(value, dict):
            resolved[key] = _resolved(value, tables)
    return resolved


def _built_in() -> _File:
    return read_toml(_File, Path(__file__).with_name("protocols.toml"))
