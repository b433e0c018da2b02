"""The main job: `reproduce`."""

from pathlib import Path

import click

from cmrepro.cli import options
from cmrepro.files import locked
from cmrepro.records import FOLDER


@click.command()
@click.argument("dataset")
@click.option("--profile", default="demo", help="demo: bundled models; paper: official ones.")
@click.option("--num-images", type=options.COUNT, help="Images of each model and seed.")
@click.option("--seeds", type=options.COUNT, help="Number of seeds.")
@options.DEVICE
@options.QUIET
@options.OUT
@options.OVERWRITE
def reproduce(
    dataset: str, profile: str, device: str, out: Path, overwrite: bool, **arguments: int | None
) -> None:
    """Sample and score the models of DATASET, and write results/ and REPORT.md: the main job.

    DATASET is cifar10; with --profile paper, which downloads the official checkpoints and needs an
    accelerator, also imagenet64. Numbers of images and seeds are the profile's by default.
    """
    from cmrepro.experiments.reproduce import load_suite
    from cmrepro.experiments.reproduce import reproduce as run
    from cmrepro.report.render import require_own_report, write_report
    from cmrepro.report.results import results_rows

    require_own_report(out, overwrite)
    changes = {key: value for key, value in arguments.items() if value is not None}
    with locked(out / "results"):
        records = run(load_suite(dataset, profile).replace(**changes), out, device, overwrite)
        written, *others = write_report(out, overwrite)
    options.print_rows(results_rows(records), "table")
    for warning in sorted({warning for record in records for warning in record.warnings}):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"wrote {len(records)} records to {out / FOLDER}, their grids to results/samples")
    click.echo(f"wrote {written} and {len(others)} tables, figures and pages to {out / 'results'}")
