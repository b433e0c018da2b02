"""Sampling: `sample`, `search-times`, and `redo` of a record.

Modules that need torch are imported inside the commands, so that wrong usage is told at once.
"""

import contextlib
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import click

from cmrepro.cli import options
from cmrepro.cli.main import cli
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import FOLDER, read_record
from cmrepro.settings import Precision


@click.command()
@click.argument("checkpoint")
@click.option("--steps", default="1", help="1, 2 or times t1,t2,…; points of an EDM model's grid.")
@click.option("--num-images", type=options.COUNT, default=16)
@click.option("--seed", type=options.SEED, default=0, help="Image i depends on (seed, i) alone.")
@click.option("--to-uint8", type=click.Choice(["round", "truncate"]), default="round")
@click.option("--clip-denoised/--no-clip-denoised", default=None, help="Default: as released.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32")
@click.option("--batch-size", type=options.COUNT, help="Default: 100; on cuda by its memory.")
@options.DEVICE
@options.QUIET
@options.OUT_NPZ
@options.OVERWRITE
def sample(checkpoint: str, steps: str, out: Path, overwrite: bool, **how: Any) -> None:
    """Sample images from CHECKPOINT into FILE.npz, with their provenance in a JSON beside it.

    --to-uint8 truncate matches the official code. For an EDM model --steps is the number N of grid
    points, which take 2N - 1 network evaluations. Under `torchrun … -m cmrepro sample …` each
    process samples its share of the images. They are kept in FILE.npz.stages until all are there:
    an interrupted call continues.
    """
    options.require_new(out, overwrite)
    try:
        times = [float(t) for t in steps.split(",")] if "," in steps else int(steps)
    except ValueError:
        raise ValueError(f"got --steps {steps}; allowed are 1, 2, … or times: 80,0.8") from None

    from cmrepro import sampling
    from cmrepro.checkpoints.load import load_model
    from cmrepro.distributed import process_group
    from cmrepro.sample_sets import provenance_path, write_sample_set

    options.require_new(provenance_path(out), overwrite)
    how["device"] = options.resolve_device(how["device"])
    folder = out.with_name(f"{out.name}.stages")
    with process_group() as rank:  # before the model is loaded, to the device of this process
        model = load_model(checkpoint, how["device"])
        rounding, clip = how["to_uint8"], how["clip_denoised"]
        settings = sampling.sampler_settings(model.info, times, rounding, clip)
        settings = settings.replace(precision=how["precision"])
        samples = sampling.sample(
            model,
            settings,
            how["num_images"],
            how["seed"],
            model.image_size,
            progress=model.path.stem,
            folder=folder,
            batch_size=how["batch_size"],
        )
        if rank == 0:
            images, provenance = samples.stages[-1], samples.provenances[-1]
            write_sample_set(out, images, provenance, samples.labels)
            shutil.rmtree(folder)
            click.echo(f"wrote {out}\nwrote {provenance_path(out)}")


@click.command("search-times")
@click.argument("checkpoint")
@click.option("--grid", "num_scales", type=int, help="Points of the grid (default: the model's).")
@click.option("--method", type=click.Choice(["ternary", "grid"]), default="ternary")
@click.option("--after", callback=options.parse_times, help="Times before it, e.g. 80,0.8.")
@options.PROTOCOL
@click.option("--num-images", type=options.COUNT, help="Images at each time.")
@click.option("--seed", type=options.SEED, default=1000, help="Seed of the noise; at least 1000.")
@options.DEVICE
@options.QUIET
@options.FORMAT
@click.option("--out", type=options.PATH, metavar="FILE", help="Checkpoint with the chosen time.")
@options.OVERWRITE
def search_times(
    checkpoint: str, protocol: str, format_: str, out: Path | None, overwrite: bool, **how: Any
) -> None:
    """Choose the second sampling time of two-step sampling by the lowest FID, as the paper does.

    The ternary search is that of the official code; "grid" scores every inner point of the grid.
    --after 80,0.8 chooses the third time after these two: more times are found one by one.
    """
    if out:
        options.require_new(out, overwrite)
        if how["after"]:
            raise ValueError("a checkpoint holds a second time only; leave out --after or --out")

    from cmrepro.checkpoints.convert import convert
    from cmrepro.checkpoints.load import load_model
    from cmrepro.distributed import process_group
    from cmrepro.search import METRIC, search_time

    how["device"] = options.resolve_device(how["device"])
    with process_group() as rank:
        model = load_model(checkpoint, how["device"])
        found = search_time(model, load_protocol(protocol), **how)
    if rank > 0:
        return
    options.print_rows(found.rows, format_)
    best = min(row[METRIC] for row in found.rows)
    scored = f"the lowest {METRIC} ({best:.5g}) of the {len(found.rows)} times scored"
    click.echo(f"next sampling time: t = {found.time:g}, with {scored}", err=True)
    if not out:
        click.echo("nothing written; --out FILE writes a checkpoint with a second time", err=True)
    else:
        time, selection = found.time, found.selection
        path = convert(checkpoint, out, two_step_time=time, two_step_selection=selection)
        click.echo(f"wrote {path}", err=True)


@click.command()
@click.argument("record", type=options.PATH)
@click.option("--run", is_flag=True, help="Run the commands and compare the results.")
@click.option("--samples", type=options.PATH, help="Sample set to score, not sampled again.")
@click.option("--checkpoint", type=options.PATH, help="File of the checkpoint.")
@click.option("--reference", type=options.PATH, help="File of the reference statistics.")
@click.option("--protocol", type=options.PATH, help="The protocol's .toml file.")
@click.option("--out", type=options.PATH, metavar="DIR", help="Folder for samples and record.")
@options.OVERWRITE
@options.QUIET
@options.FORMAT
def redo(
    record: Path, run: bool, out: Path | None, overwrite: bool, format_: str, **files: Path | None
) -> None:
    """Print the commands that make the RECORD in a file again.

    With --run they run, in a temporary folder unless --out names another, and their hashes and
    scores are compared with the record's. The exit code is 1 if the images differ on the same
    platform, or a score by more than 1e-4 of its value.
    """
    recorded = read_record(record)

    import torch

    from cmrepro.experiments.redo import compare_redone, redo_commands

    threads, extra = recorded.provenance.threads, ["--overwrite"] * overwrite
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary if run else "")
        commands = redo_commands(recorded, folder, files)
        if not run:
            for words in commands:
                line = shlex.join(["cmrepro", *words, *extra])
                click.echo(f"OMP_NUM_THREADS={threads} {line}")
            return
        torch.set_num_threads(threads)
        with contextlib.redirect_stdout(sys.stderr):
            for words in commands:
                cli.main([*words, *extra], "cmrepro", standalone_mode=False)
        redone = compare_redone(recorded, read_record(folder / FOLDER / f"{recorded.id}.json"))
    options.print_rows(redone.rows, format_)
    if redone.other_platform:
        found = "; ".join(redone.other_platform)
        click.echo(f"another platform ({found}): hashes may differ, scores are compared", err=True)
    if redone.failed:
        raise SystemExit(1)
