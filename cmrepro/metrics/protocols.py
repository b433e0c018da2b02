"""Protocols: named, versioned ways to score a sample set (protocols.toml)."""

from pathlib import Path
from typing import Any

from cmrepro.schema import convert, lookup, read_toml, unknown
from cmrepro.settings import Extractor, Protocol

# Tables by kind ("weights", "extractors", "protocols") and name.
Tables = dict[str, dict[str, dict[str, Any]]]


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    return sorted(_built_in()["protocols"])


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by name, or the only one of a .toml file, whose tables add to the package's."""
    tables = _built_in()
    if Path(name).suffix == ".toml":
        added = read_toml(Tables, Path(name))
        for kind, known in tables.items():
            if taken := sorted(known.keys() & added.get(kind, {})):
                raise ValueError(f"{name}: {kind}.{taken[0]} comes with the package; rename it")
            tables[kind] = known | added.get(kind, {})
        if (count := len(added.get("protocols", ()))) != 1:
            raise ValueError(f"{name} has {count} tables [protocols.NAME], must have one")
        [name] = added["protocols"]
    elif name not in tables["protocols"]:
        raise ValueError(f"{unknown('protocol', str(name), tables['protocols'])}, or a .toml file")
    table = _resolved({"name": name, **tables["protocols"][str(name)]}, tables)
    return convert(Protocol, table, f"protocol '{name}'")


def load_extractor_settings(name: str) -> Extractor:
    """The settings of an extractor that comes with the package."""
    table = _resolved({"extractor": name}, _built_in())["extractor"]
    return convert(Extractor, table, f"extractor '{name}'")


def _resolved(table: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """A table, with the tables of extractors and weights in the place of their names."""
    named, resolved = {"extractor": "extractors", "weights": "weights"}, dict(table)
    for key, value in table.items():
        if key in named:
            value = {"name": value, **lookup(key, str(value), tables[named[key]])}
        if isinstance(value, dict):
            resolved[key] = _resolved(value, tables)
    return resolved


def _built_in() -> Tables:
    return read_toml(Tables, Path(__file__).with_name("protocols.toml"))
