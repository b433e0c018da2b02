"""The main job: `reproduce`."""

import contextlib
from pathlib import Path

import click

from cmrepro.cli import options
from cmrepro.files import locked
from cmrepro.records import FOLDER, THEOREMS


@click.command()
@click.argument("dataset")
@click.option("--profile", default="demo", help="demo: bundled models; paper: official ones; …")
@click.option("--data", help="Training images of a profile that trains: a path or a name.")
@click.option("--set", "settings", multiple=True, help="Changes of all its recipes: KEY=VALUE,…")
@click.option("--num-images", type=options.COUNT, help="Images of each model and seed.")
@click.option("--seeds", type=options.COUNT, help="Number of seeds.")
@click.option(
    "--keep-samples/--remove-samples", default=None, help="Sample sets; default: paper keeps them."
)
@click.option("--plan", "planned", is_flag=True, help="Print downloads, disk and hours; no run.")
@options.DEVICE
@options.QUIET
@options.OUT
@options.OVERWRITE
def reproduce(
    dataset: str,
    profile: str,
    data: str | None,
    settings: tuple[str, ...],
    keep_samples: bool | None,
    planned: bool,
    device: str,
    out: Path,
    overwrite: bool,
    **arguments: int | None,
) -> None:
    """Sample and score the models of DATASET, and write results/ and REPORT.md: the main job.

    DATASET is cifar10; with --profile paper, which downloads the official checkpoints and needs an
    accelerator, also imagenet64, lsun-bedroom and lsun-cat. Numbers of images and seeds are the
    profile's by default. Profiles of cifar10 that train first: family (the demo's models from
    nothing), ablations (Section 6.1 in the demo's size), ablation-rates (their learning rates) and
    paper-ablations.

    The paper's theorems are checked in numbers too. An interrupted job continues where it stopped
    when it is started again. Under `torchrun … -m cmrepro reproduce …` each process takes its
    share of the images.
    """
    from cmrepro.distributed import process_group
    from cmrepro.experiments.plan import plan
    from cmrepro.experiments.reproduce import SAMPLE_SETS, load_suite
    from cmrepro.experiments.reproduce import reproduce as run
    from cmrepro.experiments.theorems import run_theorems
    from cmrepro.report.render import require_own_report, write_report
    from cmrepro.report.results import results_rows
    from cmrepro.report.verdicts import verdict_needs
    from cmrepro.training.suite import train_suite

    device = options.resolve_device(device)
    changes = {key: value for key, value in arguments.items() if value is not None}
    suite = load_suite(dataset, profile).replace(**changes)
    if (data or settings) and not suite.trainings:
        raise ValueError(f"profile {profile} trains nothing; leave out --data and --set")
    if planned and suite.trainings:
        raise ValueError("a plan is for models that are there; leave out --plan")
    if planned:
        options.print_rows(plan(suite, device), "table")
        return
    require_own_report(out, overwrite)
    keep = profile == "paper" if keep_samples is None else keep_samples
    with contextlib.ExitStack() as stack:
        if (rank := stack.enter_context(process_group())) == 0:
            stack.enter_context(locked(out / "results"))
            needs = verdict_needs(suite.protocol, suite.num_images, suite.seeds)
            click.echo(f"device: {device}; {needs}", err=True)
        set_ = options.parse_settings(settings)
        trained = train_suite(suite, out, data, set_, device)
        suite = suite.replace(checkpoints=suite.checkpoints | trained)
        records = run(suite, out, device, overwrite, keep)
        if rank > 0:
            return
        if overwrite or not (out / THEOREMS).is_file():
            run_theorems(out)
        written, *others = write_report(out, overwrite)
    options.print_rows(results_rows(records), "table")
    for warning in sorted({warning for record in records for warning in record.warnings}):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"wrote {len(records)} records to {out / FOLDER}, their grids to results/samples")
    click.echo(f"wrote {written} and {len(others)} tables, figures and pages to {out / 'results'}")
    if keep:
        click.echo(f"kept the sample sets in {out / SAMPLE_SETS}")
