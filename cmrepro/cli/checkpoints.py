"""Checkpoints: `checkpoints list|fetch|clean|inspect|convert`."""

import json
from pathlib import Path
from typing import Any

import click

from cmrepro.cli.options import FORMAT, OVERWRITE, PATH, QUIET, print_rows, require_new
from cmrepro.files import cache_folder
from cmrepro.schema import flat


@click.group()
def checkpoints() -> None:
    """Checkpoints: list, fetch, clean, inspect, convert."""


@checkpoints.command("list")
@FORMAT
def list_checkpoints(format_: str) -> None:
    """Checkpoints in this package, and those released by the authors."""
    from cmrepro.checkpoints.load import checkpoint_rows

    print_rows(checkpoint_rows(), format_)
    folder = cache_folder() / "checkpoints"
    names = "NAME.pt (CIFAR-10: NAME.msgpack) or under their official names"
    click.echo(f"official files put by hand go to {folder}, as {names}", err=True)


@checkpoints.command()
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Fetch all released checkpoints.")
@QUIET
def fetch(names: tuple[str, ...], every: bool) -> None:
    """Download the released checkpoints NAMES into the cache; interrupted downloads continue.

    The environment variable CMREPRO_MIRROR is an address or folder in the place of the hosts.
    """
    from cmrepro.checkpoints.convert import fetch_checkpoint
    from cmrepro.checkpoints.registry import released_checkpoints

    if bool(names) == every:
        raise click.UsageError("give one or more NAMES, or --all")
    for name in names or released_checkpoints():
        click.echo(f"wrote {fetch_checkpoint(name)}")


@checkpoints.command()
def clean() -> None:
    """Remove the official files of converted checkpoints from the cache."""
    from cmrepro.checkpoints.registry import released_checkpoints

    for entry in released_checkpoints().values():
        if entry.converted.is_file() and (path := entry.downloaded).is_file():
            path.unlink()
            click.echo(f"removed {path}")


@checkpoints.command()
@click.argument("checkpoint")
@FORMAT
def inspect(checkpoint: str, format_: str) -> None:
    """Show network, parameters, training and selection of CHECKPOINT, of any supported format."""
    from cmrepro.checkpoints.load import contents

    found = contents(checkpoint)
    rows = [{"field": key, "value": value} for key, value in flat(found).items() if value]
    click.echo(json.dumps(found, indent=1)) if format_ == "json" else print_rows(rows, format_)


@checkpoints.command()
@click.argument("source")
@click.option("--network", help="Preset of the network.")
@click.option("--parameterization", type=click.Choice(["boundary", "edm"]))
@click.option("--key", help="State dict to read among several in SOURCE, e.g. ema.")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "float16", "bfloat16"]))
@click.option("--two-step-time", type=float, help="Second sampling time to write into the file.")
@click.option("--out", type=PATH, help="Default for a released name: the cache.")
@OVERWRITE
def convert(source: str, out: Path | None, overwrite: bool, dtype: str, **options: Any) -> None:
    """Write SOURCE as a checkpoint of this suite (safetensors).

    SOURCE is the name of a released checkpoint, a state dict (.pt or safetensors, also sharded), a
    flax file, a diffusers folder, or a checkpoint of this suite. --network and --parameterization
    (consistency function "boundary", or EDM denoiser "edm") are for files that do not say.
    """
    if out:
        require_new(out, overwrite)

    import torch

    from cmrepro.checkpoints.convert import convert as run

    click.echo(f"wrote {run(source, out, dtype=getattr(torch, dtype), **options)}")
