"""What results/site/index.html and its pages of records show, as values for their templates."""

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from cmrepro.files import sha256
from cmrepro.records3 import RunRecord, flat
from cmrepro.report.published import AS_PUBLISHED, PaperRow, table3_cells
from cmrepro.report.results import LABELS, anchors, group

SITE = Path("results/site")
REAL = Path("results/samples/real.png")  # made by whoever has the data; never committed
TILE_ROWS = 2  # of a sample grid that the page shows
GRID_WIDTH = 384  # pixels: twelve images of 32
# Of the package; their reader needs torch, which the report does without.
BUNDLED = Path(__file__).parents[1] / "checkpoints" / "bundled"
GROUPS_OF_FIELDS = (
    "scores",
    "hashes",
    "comparable",
    "sampler",
    "protocol",
    "reference",
    "checkpoint",
    "provenance",
    "durations_s",
    "uncertainty",
)


class Cell(NamedTuple):
    """A cell of a table: its text, and where it leads ("" for nowhere)."""

    text: str
    href: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table of the page.

    Attributes:
        cells: By column.
        id: That links lead to; "" for none.
        group: Common to the records that one mean is of; "" for none.
        muted: Whether the row is set back.
        records: The records that our cells are of.
    """

    cells: dict[str, Cell]
    id: str = ""
    group: str = ""
    muted: bool = False
    records: Sequence[RunRecord] = ()


def paper_table(rows: list[PaperRow]) -> list[Row]:
    """Table 1 or 2; each of our cells leads to its records."""
    shown = []
    for row in rows:
        target = f"#{row.records[0].id}" if row.records else ""
        cells = {
            column: Cell(str(value), target if column.startswith("our") else "")
            for column, value in row.cells.items()
        }
        shown.append(Row(cells, muted=row.cells["ours"] == AS_PUBLISHED, records=row.records))
    return shown


def record_page(record: RunRecord) -> str:
    """Address of a record's page, seen from the index."""
    return f"records/{record.id}.html"


def record_table(records: list[RunRecord]) -> list[Row]:
    """Every record, those of one group beside each other."""
    rows = []
    for members in group(records).values():
        for record in members:
            scores = {
                label: Cell(f"{record.scores[metric]:.5g}")
                for metric, label in LABELS.items()
                if metric in record.scores
            }
            cells = {
                "model": Cell(record.model, record_page(record)),
                "NFE": Cell(_text(record.nfe)),
                "seed": Cell(_text(record.seed)),
                **scores,
                "images": Cell(f"{record.num_images:,}"),
                "protocol": Cell(f"{record.protocol['name']} v{record.protocol['version']}"),
            }
            rows.append(Row(cells, id=record.id, group=members[0].id))
    return rows


def plain_table(rows: list[dict[str, Any]], prefix: str = "") -> list[Row]:
    """A table without links; with a prefix, links lead to it and the row's `id`."""
    return [
        Row(
            {column: Cell(_text(value)) for column, value in row.items()},
            id=f"{prefix}{row['id']}" if prefix else "",
        )
        for row in rows
    ]


def code(text: str) -> Markup:
    """A text of Markdown, of which the page needs `code` alone."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def columns(rows: list[Row]) -> list[str]:
    """All columns of a table, in the order in which they come up."""
    return list(dict.fromkeys(column for row in rows for column in row.cells))


def _text(value: object) -> str:
    """A value as the page shows it; nothing for what is missing."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def marked_table3() -> dict[str, Any]:
    """Table 3 with marks where the official code differs.

    Returns:
        `cells` by row and recipe; `marked`: the deviations between its variants, in the order in
        which they come up; `letters`: the mark of each by its id.
    """
    cells = table3_cells()
    found = [d for row in cells.values() for cell in row.values() for d in cell.deviations]
    marked = {d.id: d for d in found}
    letters = dict(zip(marked, ascii_lowercase, strict=False))
    return {"cells": cells, "marked": list(marked.values()), "letters": letters}


class Grid(NamedTuple):
    """An image that the page holds within itself.

    Attributes:
        uri: The image.
        width: Pixels.
        height: Pixels.
    """

    uri: str
    width: int
    height: int


def grid(path: Path) -> Grid:
    """The first rows of a sample grid.

    As a bitmap, since that has one encoding: the page is compared digit by digit, and a compressed
    image would change with the version of its library. Images of more than 32 pixels shrink.

    Raises:
        ValueError: Not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is not an image ({error}); make or remove it") from error
    tile = math.gcd(*image.size)
    image = image.crop((0, 0, image.width, min(image.height, TILE_ROWS * tile)))
    image = image.reduce(max(1, image.width // GRID_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="BMP")
    uri = "data:image/bmp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Grid(uri, *image.size)


def record_fields(record: RunRecord, records: list[RunRecord], folder: Path) -> dict[str, Any]:
    """What the page of a record in folder/ID.json shows.

    Returns:
        `record`; `file_sha256` of its file: whatever is edited there, the page no longer fits;
        `anchors`: those of `records` that say what its scores mean; `scores`: label, value, ends
        of the interval where there is one, and the anchors' values; `groups`: flat fields by
        their first key; `bundled`: whether its checkpoint comes with the package.
    """
    context = anchors(record, records)
    intervals = record.uncertainty.get("intervals", {})
    scores = [
        (
            label,
            record.scores[metric],
            " to ".join(f"{end:.5g}" for end in intervals.get(metric, ())),
            [anchor.scores.get(metric) for anchor in context],
        )
        for metric, label in LABELS.items()
        if metric in record.scores
    ]
    fields = asdict(record)
    groups = {
        key: {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in flat(fields[key]).items()
        }
        for key in GROUPS_OF_FIELDS
        if fields[key]
    }
    own = BUNDLED / f"{record.model}.safetensors"
    return {
        "record": record,
        "file_sha256": sha256(folder / f"{record.id}.json"),
        "anchors": context,
        "scores": scores,
        "groups": groups,
        "bundled": own.is_file() and sha256(own) == record.checkpoint.get("sha256"),
    }
