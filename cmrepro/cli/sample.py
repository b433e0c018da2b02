"""Sampling: `sample`, `search-times`, and the main job `reproduce`."""

from pathlib import Path

import click

from cmrepro.cli.options import DEVICE, FORMAT, OUT, parse_steps, print_rows


@click.command()
@click.argument("dataset")
@click.option(
    "--profile",
    default="demo",
    show_default=True,
    help="demo: bundled models, no download; paper: the official ones under its protocol.",
)
@click.option("--num-samples", type=int, help="Images a model and seed (default: the suite's).")
@click.option("--seeds", type=int, help="Number of seeds (default: the suite's).")
@DEVICE
@OUT
def reproduce(
    dataset: str,
    profile: str,
    num_samples: int | None,
    seeds: int | None,
    device: str,
    out: Path,
) -> None:
    """The main job for DATASET (cifar10): sample, score, write results/ and REPORT.md.

    With --profile paper DATASET may be imagenet64 too.
    """
    from cmrepro.experiments.reproduce import load_suite
    from cmrepro.experiments.reproduce import reproduce as run
    from cmrepro.report.render import write_report

    suite = load_suite(dataset, profile)
    if num_samples is not None:
        suite = suite.replace(num_images=num_samples)
    if seeds is not None:
        suite = suite.replace(seeds=seeds)
    run(suite, out, device)
    click.echo(f"wrote {write_report(out)[0]}")


@click.command()
@click.argument("checkpoint")
@click.option(
    "--steps",
    default="1",
    show_default=True,
    help="1, 2 or times t1,t2,…; of an EDM model N points of Heun's sampler, which cost 2N - 1 "
    "evaluations (18 for 35).",
)
@click.option("--num", default=16, show_default=True, help="Number of images.")
@click.option("--seed", default=0, show_default=True, help="Image i depends on (seed, i) alone.")
@click.option(
    "--to-uint8",
    type=click.Choice(["round", "truncate"]),
    default="round",
    show_default=True,
    help="The official code truncates.",
)
@DEVICE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sample set, .npz.")
def sample(
    checkpoint: str, steps: str, num: int, seed: int, to_uint8: str, device: str, out: Path
) -> None:
    """Sample images from CHECKPOINT into an .npz with its origin in a .json beside it.

    Under `torchrun … -m cmrepro sample …` every process samples its share of the images.
    """
    from cmrepro.checkpoints.io import load_model
    from cmrepro.distributed import process_group
    from cmrepro.files import require_writable
    from cmrepro.sampling import sample as run
    from cmrepro.sampling import sample_provenance, sampler_settings, write_sample_set

    if out.suffix != ".npz" or out.is_dir():
        raise ValueError(f"got --out {out}; allowed is a file ending in .npz")
    require_writable(out)
    model = load_model(checkpoint, device)
    settings = sampler_settings(model.info, parse_steps(steps), to_uint8)
    with process_group() as rank:
        samples = run(model, settings, num, seed, model.image_size, progress=model.path.stem)
    if rank == 0:
        provenance = sample_provenance(model, settings, seed, samples)
        write_sample_set(out, samples.stages[-1], provenance, samples.labels)
        click.echo(out)


@click.command("search-times")
@click.argument("checkpoint")
@click.option("--grid", type=int, help="Points of the time grid (default: the checkpoint's).")
@click.option(
    "--method",
    type=click.Choice(["ternary", "grid"]),
    default="ternary",
    show_default=True,
    help="The official code's ternary search, or every point.",
)
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--num", type=int, help="Images at each time (default: the protocol's).")
@click.option("--seed", default=1000, show_default=True, help="One that is not reported.")
@DEVICE
@FORMAT
@click.option(
    "--out", type=click.Path(path_type=Path), help="Checkpoint to write with the time found."
)
def search_times(
    checkpoint: str,
    grid: int | None,
    method: str,
    protocol: str,
    num: int | None,
    seed: int,
    device: str,
    format_: str,
    out: Path | None,
) -> None:
    """The second time of 2-step sampling, chosen by the FID of its images, as the paper did."""
    from cmrepro.checkpoints.convert import convert as write
    from cmrepro.checkpoints.io import load_model
    from cmrepro.files import require_writable
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.search import search_time

    if out:
        require_writable(out)
    found = search_time(
        load_model(checkpoint, device),
        load_protocol(protocol),
        method=method,
        num_scales=grid,
        num_images=num,
        seed=seed,
        device=device,
    )
    print_rows(found.rows, format_)
    click.echo(found.selection.rule, err=True)
    if out:
        click.echo(
            write(checkpoint, out, two_step_time=found.time, two_step_selection=found.selection),
            err=True,
        )
