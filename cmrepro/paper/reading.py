"""CSV rows and TOML entries of the package data, refused with file, row and column."""

import csv
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmrepro.schema import unknown

FOLDER = Path(__file__).parent


def defect(file: str, row: str, column: str, problem: str) -> ValueError:
    """The error for one cell: file, row, column, and what is wrong with it."""
    return ValueError(f"{file}, {row}, column '{column}': {problem}")


def known(file: str, row: str, column: str, name: object, names: Iterable[str]) -> str:
    """`name`, if it is one of `names`.

    Raises:
        ValueError: It is not: names the cell and the nearest known name.
    """
    names = set(names)
    if not isinstance(name, str) or name not in names:
        raise defect(file, row, column, unknown("name", str(name), names))
    return name


def distinct(file: str, column: str, keys: Iterable[tuple[str, object]]) -> None:
    """Refuse a repeated key.

    Args:
        file: Name of the file.
        column: What the key is made of.
        keys: (row, key) pairs.

    Raises:
        ValueError: Two rows have one key; names both.
    """
    seen: dict[object, str] = {}
    for row, key in keys:
        if key in seen:
            raise defect(file, row, column, f"{key!r} is in {seen[key]} already; give it once")
        seen[key] = row


def read_csv(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with exactly these columns.

    Returns:
        ("line 2", {column: text}) for each row.

    Raises:
        ValueError: Unknown, missing or repeated column; a row of another length; broken quotes.
    """
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            for column in header:
                known(path.name, "line 1", column, column, columns)
            if sorted(header) != sorted(columns):
                raise ValueError(
                    f"{path.name}, line 1: got the columns {', '.join(header)}; "
                    f"needed once each: {', '.join(columns)}"
                )
            for cells in reader:
                row = f"line {reader.line_num}"
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path.name}, {row}: got {len(cells)} cells for {len(header)} columns; "
                        "quote cells that hold commas"
                    )
                rows.append((row, dict(zip(header, cells, strict=True))))
        except csv.Error as error:
            raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from error
    return rows


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        ValueError: Not TOML; names the file and the place.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error


def check_entry(
    file: str,
    row: str,
    entry: Any,
    required: Mapping[str, type],
    optional: Mapping[str, type] | None = None,
) -> None:
    """Refuse what is no TOML table, unknown or missing keys, other types and empty texts.

    Args:
        file: Name of the file.
        row: Which table, for the error.
        entry: The table.
        required: Type of each key that has to be there.
        optional: Type of each key that may be there.

    Raises:
        ValueError: Names file, table and key.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{file}, {row}: got {entry!r}, needed a table")
    types = {**required, **(optional or {})}
    for key, value in entry.items():
        known(file, row, key, key, types)
        if type(value) is not types[key]:
            problem = f"got {value!r}, needed {types[key].__name__}"
            raise defect(file, row, key, problem)
        if value in ("", []):
            raise defect(file, row, key, "is empty; fill it in or leave the key out")
    for key in required:
        if key not in entry:
            raise defect(file, row, key, "is missing")


@functools.cache
def sources(folder: Path = FOLDER) -> dict[str, str]:
    """What each source letter stands for, with commit or version."""
    data = read_toml(folder / "sources.toml")
    check_entry("sources.toml", "top", data, dict.fromkeys(data, str))
    return data


def check_verified(folder: Path, file: str, row: str, text: str) -> str:
    """`text` of a column `verified`, if it says how a row of Tables 1 to 3 was checked.

    Raises:
        ValueError: It does not begin with "verified (A,B…)" and known source letters.
    """
    match = re.match(r"verified \(([A-Z](?:,[A-Z])*)[;)]", text)
    if match is None:
        raise defect(file, row, "verified", f"got {text!r}, needed 'verified (A,B)' with sources")
    for letter in match[1].split(","):
        known(file, row, "verified", letter, sources(folder))
    return text
