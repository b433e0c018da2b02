"""Declared types for everything that is read: TOML, JSON, headers, command-line settings.

The error of a wrong value names the place, what was got and what is allowed.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo, fields

T = TypeVar("T")

LARGEST = (1 << 63) - 1  # of integers in arrays and files
Positive = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Checksum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="64 hex digits")]

to_builtins = msgspec.to_builtins  # a Struct as JSON would hold it: dicts, lists, text, numbers


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all declared types, which pass `frozen=True, kw_only=True` for type checkers."""

    def replace(self: T, **changes: Any) -> T:
        """The same values with some fields changed, checked like values that are read."""
        return convert(type(self), to_builtins(self) | to_builtins(changes), "")


def unknown(kind: str, name: str, known: Iterable[str], listed_by: str = "") -> str:
    """Error text for an unknown name: what was got, the nearest name, all known names.

    With `listed_by`, a command that lists names too many for one line, only the three nearest.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=3 if listed_by else 1, cutoff=0.5)
    quoted = ", ".join(f"'{match}'" for match in nearest)
    hint = f"did you mean {quoted}? " if nearest else ""
    if listed_by and names:
        return f"unknown {kind} '{name}': {hint}{len(names)} are known; '{listed_by}' lists them"
    return f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'}"


def lookup(kind: str, name: str, known: Mapping[str, T], listed_by: str = "") -> T:
    """Value of a name, or the error of `unknown`."""
    if name not in known:
        raise ValueError(unknown(kind, name, known, listed_by))
    return known[name]


def convert(kind: type[T], values: object, where: str, strict: bool = True) -> T:
    """Builtins as a declared type; the ValueError of a wrong value begins with its source `where`.

    `strict` refuses numbers that are written as text, as the cells of a CSV file are.
    """
    try:
        return msgspec.convert(values, kind, strict=strict, str_keys=True)
    except msgspec.ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise ValueError(prefix + _explained(str(error), kind, values)) from None


def read_toml(kind: type[T], path: Path) -> T:
    """A TOML file as a declared type."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as TOML ({error}); correct it") from error
    return convert(kind, values, str(path))


def read_json(kind: type[T], path: Path) -> T:
    """A JSON file as a declared type; NaN and infinity are refused."""
    try:
        values = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    return convert(kind, values, str(path))


def to_json(value: object) -> str:
    """A Struct as indented JSON with sorted keys, ending in a newline."""
    return json.dumps(to_builtins(value), indent=1, sort_keys=True, allow_nan=False) + "\n"


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"protocol": {"name": x}} becomes {"protocol.name": x}."""
    leaves: dict[str, Any] = {}
    for key, value in fields.items():
        nested = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def _explained(text: str, kind: Any, values: Any) -> str:
    """Error of msgspec with the value that was got, and the nearest name for an unknown one."""
    message, _, place = text.partition(" - at `$")
    place = place.rstrip("`").removeprefix(".")
    annotations, value = [kind], values
    for step in re.findall(r"[^.\[\]]+", place):
        if isinstance(value, list | tuple) and step.isdigit():
            value = value[int(step)]
        elif isinstance(value, Mapping):
            value = value.get(step)
        inner = [f.type for f in _fields(annotations) if f.encode_name == step]
        annotations = inner or annotations  # of a container: those of its items
    if found := re.search(r"contains unknown field `(.*)`", message):
        known = [field.encode_name for field in _fields(annotations)]
        return unknown(f"key{f' in {place}' if place else ''}", found[1], known)
    if "missing required field" in message:
        key = message.rpartition("field ")[2].strip("`")
        return f"'{key}' is missing{f' in {place}' if place else ''}; add it"
    if "Invalid enum value" in message:
        literals = [v for a in annotations for v in _arguments(a) if isinstance(v, str)]
        return unknown(place.rpartition(".")[2] or "value", str(value), literals)
    if not message.startswith(("Expected", "Invalid", "Object")):  # raised by a Struct itself
        return message
    got = json.dumps(value, default=repr)[:80]
    return f"got {place or 'value'} = {got}; {message[:1].lower()}{message[1:]}"


def _fields(annotations: list[Any]) -> list[FieldInfo]:
    """Fields of all Structs inside annotations."""
    types = [type_ for annotation in annotations for type_ in _arguments(annotation)]
    structs = [t for t in types if isinstance(t, type) and issubclass(t, msgspec.Struct)]
    return [field for struct in structs for field in fields(struct)]


def _arguments(annotation: Any) -> list[Any]:
    """An annotation and everything inside its brackets."""
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(found for each in inner for found in _arguments(each))]
