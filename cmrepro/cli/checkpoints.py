"""Checkpoints: `checkpoints list|fetch|inspect|convert`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.cli.options import FORMAT, print_rows


@click.group()
def checkpoints() -> None:
    """Checkpoints: list, fetch, inspect, convert."""


@checkpoints.command("list")
@FORMAT
def list_checkpoints(format_: str) -> None:
    """The checkpoints that come with the package, and those that the authors released."""
    from cmrepro.checkpoints.contents import checkpoint_rows

    print_rows(checkpoint_rows(), format_)


@checkpoints.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download the released checkpoint NAME into the cache; an interrupted download goes on."""
    from cmrepro.checkpoints.registry import fetch_checkpoint

    click.echo(fetch_checkpoint(name))


@checkpoints.command()
@click.argument("checkpoint")
def inspect(checkpoint: str) -> None:
    """What CHECKPOINT (of any readable format) holds, as JSON; its weights are not loaded."""
    import json

    from cmrepro.checkpoints.contents import describe, here

    click.echo(json.dumps(describe(here(checkpoint)), indent=1))


@checkpoints.command()
@click.argument("source")
@click.option(
    "--to",
    type=click.Choice(["safetensors", "diffusers"]),
    default="safetensors",
    show_default=True,
    help="Our format, or a folder for diffusers.",
)
@click.option("--network", help="Preset, where the file does not say.")
@click.option(
    "--parameterization",
    type=click.Choice(["boundary", "edm"]),
    help="Consistency function or EDM denoiser, where the file does not say.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32")
@click.option("--two-step-time", type=float, help="Second sampling time to put into the file.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File or folder to write (default for a released name: the cache).",
)
def convert(source: str, out: Path | None, dtype: str, **choices: Any) -> None:
    """Write SOURCE as a checkpoint of ours, or for diffusers.

    SOURCE is the name of a released checkpoint, a .pt or flax file of the official code, a
    diffusers folder, or a checkpoint of ours.
    """
    import torch

    from cmrepro.checkpoints.convert import convert as run

    click.echo(run(source, out, dtype=getattr(torch, dtype), **choices))
