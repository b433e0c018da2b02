"""Sampling: `sample`, `search-times`, and the main job `reproduce`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.checkpoints.convert import convert
from cmrepro.checkpoints.load import load_model
from cmrepro.cli import options
from cmrepro.distributed import process_group
from cmrepro.experiments.reproduce import load_suite
from cmrepro.experiments.reproduce import reproduce as run_suite
from cmrepro.metrics.protocols import load_protocol
from cmrepro.report.render import require_own_report, write_report
from cmrepro.sampling import sample as run
from cmrepro.sampling import sample_provenance, sampler_settings, write_sample_set
from cmrepro.search import search_time
from cmrepro.settings import Rounding


@click.command()
@click.argument("dataset")
@click.option("--profile", default="demo", help="demo: bundled models; paper: official ones.")
@click.option("--num-images", type=options.COUNT, help="Images of each model and seed.")
@click.option("--seeds", type=options.COUNT, help="Number of seeds.")
@options.DEVICE
@options.OUT
@options.OVERWRITE
def reproduce(
    dataset: str, profile: str, device: str, out: Path, overwrite: bool, **arguments: int | None
) -> None:
    """Sample and score the models of DATASET, and write results/ and REPORT.md: the main job.

    DATASET is cifar10; with --profile paper, which downloads the official checkpoints and needs an
    accelerator, also imagenet64. Numbers of images and seeds are the profile's by default.
    """
    require_own_report(out, overwrite)
    changes = {key: value for key, value in arguments.items() if value is not None}
    run_suite(load_suite(dataset, profile).replace(**changes), out, device, overwrite)
    click.echo(f"wrote {write_report(out, overwrite)[0]}")


@click.command()
@click.argument("checkpoint")
@click.option("--steps", default="1", help="1, 2 or times t1,t2,…; points of an EDM model's grid.")
@click.option("--num-images", default=16)
@click.option("--seed", default=0, help="Image i depends on (seed, i) alone.")
@click.option("--to-uint8", type=click.Choice(["round", "truncate"]), default="round")
@options.DEVICE
@click.option("--out", type=options.PATH, metavar="FILE.npz", required=True)
@options.OVERWRITE
def sample(
    checkpoint: str, steps: str, to_uint8: Rounding, out: Path, overwrite: bool, **arguments: Any
) -> None:
    """Sample images from CHECKPOINT into FILE.npz, with their provenance in a JSON beside it.

    The official code truncates to uint8. N points of an EDM model's grid take 2N - 1 evaluations
    (18: 35). Under `torchrun … -m cmrepro sample …` each process samples its share of the images.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise ValueError(f"got --out {out}; allowed is a file ending in .npz")
    options.require_new(out, overwrite)
    model = load_model(checkpoint, arguments["device"])
    settings = sampler_settings(model.info, options.parse_steps(steps), to_uint8)
    with process_group() as rank:
        seed, size = arguments["seed"], model.image_size
        samples = run(model, settings, arguments["num_images"], seed, size, model.path.stem)
    if rank == 0:
        provenance = sample_provenance(model, settings, seed, samples)
        write_sample_set(out, samples.stages[-1], provenance, samples.labels, overwrite)
        click.echo(f"wrote {out}")


@click.command("search-times")
@click.argument("checkpoint")
@click.option("--grid", "num_scales", type=int, help="Points of the grid (default: the recipe's).")
@click.option("--method", type=click.Choice(["ternary", "grid"]), default="ternary")
@options.PROTOCOL
@click.option("--num-images", type=options.COUNT, help="Images at each time.")
@click.option("--seed", default=1000, help="Seed of the noise; at least 1000.")
@options.DEVICE
@options.FORMAT
@click.option(
    "--out", type=options.PATH, metavar="FILE", help="Checkpoint to write with the time."
)
@options.OVERWRITE
def search_times(
    checkpoint: str,
    protocol: str,
    format_: str,
    out: Path | None,
    overwrite: bool,
    **arguments: Any,
) -> None:
    """Search the second time of 2-step sampling by the FID of its images, as the paper did.

    The ternary search is that of the official code; "grid" scores every inner point of the grid.
    """
    if out:
        options.require_new(out, overwrite)
    model = load_model(checkpoint, arguments["device"])
    found = search_time(model, load_protocol(protocol), **arguments)
    options.print_rows(found.rows, format_)
    click.echo(f"t = {found.time:g}: {found.selection.rule}", err=True)
    if out:
        time, selection = found.time, found.selection
        path = convert(checkpoint, out, two_step_time=time, two_step_selection=selection)
        click.echo(f"wrote {path}", err=True)
