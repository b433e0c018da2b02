"""Options of several commands, and the settings, outputs and tables that they stand for."""

import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cmrepro.files import require_writable
from cmrepro.report.tables import FORMATS, render
from cmrepro.schema import LARGEST

COUNT, SEED = click.IntRange(1, LARGEST), click.IntRange(0, LARGEST)
PATH = click.Path(path_type=Path)
OUT = click.option(
    "--out", type=PATH, metavar="DIR", default=Path(), help="Folder of results/ and REPORT.md."
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace different files.")
FORMAT = click.option("--format", "format_", type=click.Choice(FORMATS), default="table")
PROTOCOL = click.option("--protocol", default="embedded", help="Name, or .toml file of your own.")
VARIANT = click.option("--variant", type=click.Choice(["paper", "released"]), default="paper")


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The name of a device that PyTorch finds, or "auto", which `resolve_device` resolves."""
    if value not in ("auto", "cpu"):
        import torch  # only here: it takes seconds, and wrong usage is told at once

        try:
            torch.empty(0, device=value)
        except (RuntimeError, AssertionError):
            allowed = "auto, cpu, cuda, cuda:N, mps or xpu"
            raise click.BadParameter(f"no device '{value}' here; choose {allowed}") from None
    return value


def resolve_device(device: str) -> str:
    """The device itself; of "auto" the first that is there of cuda, mps and cpu."""
    import torch

    if device != "auto":
        return device
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return next((name for name, is_there in there.items() if is_there), "cpu")


def _npz(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """The path of a file that ends in .npz."""
    if value.suffix != ".npz" or value.is_dir():
        raise click.BadParameter(f"got {value}; allowed is a file ending in .npz")
    return value


OUT_NPZ = click.option("--out", type=PATH, metavar="FILE.npz", required=True, callback=_npz)
CHANNELS_FIRST = click.option(
    "--channels-first", is_flag=True, help="Images in an .npy or .npz are (N, 3, H, W)."
)
DEVICE = click.option(
    "--device", default="auto", callback=_device, help="cuda, mps or cpu; cuda:N, …"
)


def parse_times(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> list[float] | None:
    """Sampling times "80,0.8" as numbers."""
    try:
        return None if value is None else [float(t) for t in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"got {value}; allowed are times such as 80,0.8") from None


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Set whether progress is hidden, from now on."""
    from cmrepro import progress  # only here, since tables have no progress

    progress.quiet = value


QUIET = click.option(
    "--quiet", is_flag=True, callback=_quiet, expose_value=False, help="Show no progress."
)


def require_new(path: Path, overwrite: bool) -> None:
    """Refuse an output file that cannot be written, or that exists, before any work."""
    require_writable(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; choose another --out, or add --overwrite")


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings {"total_steps": 20, …} from texts "total_steps=20,…" (repeated `--set`).

    Values are numbers, true and false as in TOML, none, or else text.
    """
    settings: dict[str, Any] = {}
    for part in (part for text in texts for part in text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key in settings:
            raise ValueError(f"got --set {part}; allowed is KEY=VALUE[,KEY=VALUE…], each key once")
        try:
            settings[key] = None if value == "none" else tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            settings[key] = value
    return settings


def print_rows(rows: Sequence[Mapping[str, Any]], format_: str) -> None:
    """Print rows as a table in a format, on a terminal as wide as that."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.echo(render(rows, format_, width), nl=False)
