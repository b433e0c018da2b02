"""`theorems`: the paper's theorems checked in numbers."""

from pathlib import Path

import click

from cmrepro.cli import options
from cmrepro.records import THEOREMS
from cmrepro.report.theorems import theorem_rows


@click.command()
@options.OUT
@options.OVERWRITE
@options.QUIET
@options.FORMAT
def theorems(out: Path, overwrite: bool, format_: str) -> None:
    """Check the paper's theorems in numbers, on Gaussian mixtures with a known score.

    A minute on one core. Writes results/theorems.json below --out, from which `report` makes a
    section of REPORT.md.
    """
    options.require_new(out / THEOREMS, overwrite)

    from cmrepro.experiments.theorems import run_theorems

    run = run_theorems(out)
    options.print_rows(theorem_rows(run.checks), format_)
    click.echo(f"wrote {out / THEOREMS}", err=True)
