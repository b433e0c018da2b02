"""The command line: parses, calls, prints. Heavy imports stay inside the commands."""

import sys
from pathlib import Path
from typing import Any

import click

OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder for what is written (default: the current one).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cmrepro")
def cli(debug: bool) -> None:
    """Reproduce "Consistency Models" (Song et al. 2023) and measure how well."""


def parse_settings(text: str | None) -> dict[str, Any]:
    """{"total_steps": 20, …} from "total_steps=20,…": numbers, true, false, none, else text."""
    settings: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"got --set {part}; allowed is KEY=VALUE[,KEY=VALUE…]")
        settings[key.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


FORMAT = click.option(
    "--format",
    "format_",
    default="table",
    show_default=True,
    help="table, md, csv, json or latex.",
)


@cli.command()
@click.argument("recipe")
@click.option("--variant", default="paper", help="paper or released.")
@click.option("--teacher", help="EDM checkpoint: a bundled name or a path.")
@click.option("--data", "data_path", help="Data set: a path, a name, or 'synthetic'.")
@click.option(
    "--max-unreadable",
    default=0,
    show_default=True,
    help="Leave out so many images that cannot be decoded, naming them.",
)
@click.option("--set", "settings", help="Changes to the recipe, KEY=VALUE[,KEY=VALUE…].")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the newest state in the output folder.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@click.option(
    "--precision",
    help="fp32, bf16 or fp16 (default: the recipe's; fp16 where it has mixed precision).",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help="Images at once in a process (default: those of one device in the paper); gradients "
    "add up to the recipe's batch.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks.")
@click.option("--save-every", type=click.IntRange(1), default=500, show_default=True)
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="States kept.")
@click.option(
    "--sample-every",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    help="Steps between grids of samples with a quick score; 0: none.",
)
@click.option("--tensorboard", is_flag=True, help="Write the log for TensorBoard too.")
@click.option("--plan", "planned", is_flag=True, help="Say what it will take; do not train.")
@FORMAT
@OUT
def train(
    recipe: str,
    variant: str,
    data_path: str | None,
    max_unreadable: int,
    settings: str | None,
    threads: int | None,
    save_every: int,
    sample_every: int,
    planned: bool,
    format_: str,
    out: Path,
    device: str,
    **choices: Any,
) -> None:
    """Train RECIPE: an EDM teacher, CD or CT.

    Ctrl-C (exit code 130) and SIGTERM (143) save and end the run; --resume goes on. Processes of
    torchrun share every batch, which is the recipe's however many they are, and go on by
    themselves when one has died and all are started again; --out is the same folder for all:

        TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8
        --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3
        -m cmrepro train RECIPE --device cuda --resume --out FOLDER
    """
    import torch

    from cmrepro.experiments.provenance import provenance
    from cmrepro.processes import joined_processes
    from cmrepro.training.loop import Rhythm, recipe_images
    from cmrepro.training.loop import train as run
    from cmrepro.training.plan import plan
    from cmrepro.training.recipes import load_recipe

    if threads:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe, variant).replace(**parse_settings(settings))  # type: ignore[arg-type]
    if planned:
        how = {key: choices[key] for key in ("precision", "micro_batch", "compiled")}
        print_rows(plan(chosen, device, **how), format_)
        return
    with joined_processes() as rank:
        path = run(
            chosen,
            recipe_images(chosen, data_path, max_unreadable),
            out,
            device=device,
            rhythm=Rhythm(save_every=save_every, sample_every=sample_every),
            provenance=provenance(),
            **choices,
        )
    if rank == 0:
        click.echo(path)


def print_rows(rows: Any, format_: str) -> None:
    """Print rows (a list of dictionaries) in a format."""
    from cmrepro.report.tables import render

    click.echo(render(rows, format_), nl=False)  # type: ignore[arg-type]


def parse_steps(text: str) -> int | list[float]:
    """A number of steps, or a list of times.

    Raises:
        ValueError: Neither.
    """
    try:
        return int(text) if "," not in text else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"got --steps {text}; allowed is a number of steps or times t1,t2,…, e.g. 80,0.8"
        ) from error


@cli.command()
@click.argument("dataset")
@click.option(
    "--profile",
    default="demo",
    show_default=True,
    help="demo: bundled models, no download; paper: the official ones under its protocol.",
)
@click.option("--num-samples", type=int, help="Images a model and seed (default: the suite's).")
@click.option("--seeds", type=int, help="Number of seeds (default: the suite's).")
@click.option("--device", default="cpu", show_default=True)
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
    run(
        suite,
        out,
        num_images=suite.num_images if num_samples is None else num_samples,
        seeds=suite.seeds if seeds is None else seeds,
        device=device,
    )
    click.echo(f"wrote {write_report(out)[0]}")


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when out of step with records.")
@OUT
def report(check: bool, out: Path) -> None:
    """Tables, figures and REPORT.md from results/records."""
    from cmrepro.report.render import check_report, write_report

    if not check:
        for path in write_report(out):
            click.echo(f"wrote {path}")
    elif problems := check_report(out):
        raise SystemExit("\n".join([*problems, "run 'cmrepro report' to write them again"]))


@cli.command()
@click.option("--variant", default="paper", show_default=True, help="paper, released or both.")
@FORMAT
def table3(variant: str, format_: str) -> None:
    """Table 3 of the paper, made from the recipes that training uses."""
    from cmrepro.training.recipes import table3_rows

    print_rows(table3_rows(variant), format_)


@cli.command()
@FORMAT
def claims(format_: str) -> None:
    """Every number and ordering of the paper that this suite can test."""
    from cmrepro.report.tables import claims_rows

    print_rows(claims_rows(), format_)


@cli.command()
@FORMAT
def deviations(format_: str) -> None:
    """The ledger: where the paper and its official code disagree."""
    from cmrepro.report.tables import deviations_rows

    print_rows(deviations_rows(), format_)


@cli.group()
def recipe() -> None:
    """Recipes: list, show."""


@recipe.command("list")
def list_recipes() -> None:
    """Names of all recipes."""
    from cmrepro.training.recipes import recipe_names

    click.echo("\n".join(recipe_names()))


@recipe.command()
@click.argument("name")
@click.option("--variant", default="paper", show_default=True, help="paper or released.")
@FORMAT
def show(name: str, variant: str, format_: str) -> None:
    """Everything that recipe NAME says, with what Table 3 leaves out."""
    from cmrepro.training.recipes import recipe_rows

    print_rows(recipe_rows(name, variant), format_)  # type: ignore[arg-type]


@cli.group()
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
@click.option("--selection", help="How checkpoint and time were chosen.")
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


@cli.command()
@click.argument("checkpoint")
@click.option("--steps", default="1", show_default=True, help="1, 2 or times t1,t2,…")
@click.option("--num", default=16, show_default=True, help="Number of images.")
@click.option("--seed", default=0, show_default=True, help="Image i depends on (seed, i) alone.")
@click.option(
    "--to-uint8",
    type=click.Choice(["round", "truncate"]),
    default="round",
    show_default=True,
    help="The official code truncates.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sample set, .npz.")
def sample(
    checkpoint: str, steps: str, num: int, seed: int, to_uint8: str, device: str, out: Path
) -> None:
    """Sample images from CHECKPOINT into an .npz with its origin in a .json beside it.

    Under `torchrun … -m cmrepro sample …` every process samples its share of the images.
    """
    from cmrepro.checkpoints.io import load_model
    from cmrepro.experiments.run import sampled_origin, write_sample_set
    from cmrepro.experiments.sampling import sample as run
    from cmrepro.experiments.sampling import sampler_settings
    from cmrepro.processes import joined_processes

    if out.suffix != ".npz":
        raise ValueError(f"got --out {out}; allowed is a file ending in .npz")
    model = load_model(checkpoint, device)
    settings = sampler_settings(model.info, parse_steps(steps), to_uint8)
    with joined_processes() as rank:
        samples = run(model, settings, num, seed, model.image_size, progress=model.path.stem)
    if rank == 0:
        origin = sampled_origin(model, settings, seed, samples.noise_sha256)
        write_sample_set(out, samples.stages[-1], origin, samples.labels)
        click.echo(out)


@cli.command()
@click.argument("samples")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    default=["embedded"],
    show_default=True,
    help="Name, or .toml file of your own; may be given several times.",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    help="Name or file of other statistics, one for each protocol.",
)
@click.option("--num-images", type=int, help="Score the first so many (default: the protocol's).")
@click.option("--name", help="What the record calls the images (default: the file's name).")
@click.option(
    "--bootstrap",
    default=0,
    show_default=True,
    help="Resamples for the intervals of the scores, and FID against the number of images.",
)
@click.option(
    "--explain",
    "explained",
    nargs=2,
    metavar="A B",
    help="Attribute the difference between protocols A and B step by step; a table and a figure.",
)
@click.option("--real", help="Real images, for --explain between different extractors.")
@click.option("--device", default="cpu", show_default=True)
@FORMAT
@OUT
def evaluate(
    samples: str,
    protocols: tuple[str, ...],
    references: tuple[str, ...],
    num_images: int | None,
    name: str | None,
    bootstrap: int,
    explained: tuple[str, str] | None,
    real: str | None,
    device: str,
    format_: str,
    out: Path,
) -> None:
    """Score SAMPLES (.npz, folder or zip of images) and write the records to results/records.

    Under `torchrun … -m cmrepro evaluate …` every process takes its share of the images.
    """
    from cmrepro.datasets import open_images
    from cmrepro.experiments.explain import explain, explanation_rows
    from cmrepro.experiments.run import evaluate as run
    from cmrepro.experiments.run import read_origin
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.processes import joined_processes
    from cmrepro.records import write_record

    chosen = [load_protocol(protocol) for protocol in explained or protocols]
    source = open_images(samples, name)
    if explained:
        from cmrepro.report.figures import waterfall_figure

        first, second = chosen
        real_images = open_images(real) if real else None
        steps = explain(source, first, second, real=real_images, device=device)
        rows = explanation_rows(steps)
        print_rows(rows, format_)
        figure = f"explain_{source.name}_{first.name}_{second.name}.png"
        path = out / "results" / "figures" / figure
        waterfall_figure(rows, path)
        click.echo(f"wrote {path}", err=True)
        return
    with joined_processes():
        records = run(
            source,
            chosen,
            read_origin(Path(samples), source.name),
            references=references,
            num_images=num_images,
            device=device,
            bootstrap=bootstrap,
            progress=True,
        )
    rows = []
    for record in records:
        path = write_record(record, out / "results" / "records")
        rows.append({"record": path.stem, "images": record.num_images, **record.scores})
        for warning in record.warnings:
            click.echo(f"warning: {record.protocol['name']}: {warning}", err=True)
    if rows:
        print_rows(rows, format_)


@cli.command()
@click.argument("data_path")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the subset and of the noise.")
@OUT
def anchors(data_path: str, protocol: str, seed: int, out: Path) -> None:
    """Score real images at DATA_PATH, the same ones blurred, and noise: what the scale means."""
    from cmrepro.datasets import load_dataset
    from cmrepro.experiments.anchors import anchor_records
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.records import write_record

    chosen = load_protocol(protocol)
    for record in anchor_records(load_dataset(data_path), chosen, seed):
        click.echo(f"wrote {write_record(record, out / 'results' / 'records')}")


@cli.command("search-times")
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
@click.option("--device", default="cpu", show_default=True)
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
    from cmrepro.experiments.search import search_time
    from cmrepro.metrics.protocols import load_protocol

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
    click.echo(found.selection, err=True)
    if out:
        click.echo(
            write(checkpoint, out, two_step_time=found.time, selection=found.selection), err=True
        )


@cli.group()
def references() -> None:
    """Reference statistics: list, fetch, build."""


@references.command("list")
@FORMAT
def list_references(format_: str) -> None:
    """The reference statistics that have names: bundled, to be fetched, or to be built."""
    from cmrepro.metrics.reference_registry import reference_rows

    print_rows(reference_rows(), format_)


@references.command("fetch")
@click.argument("name")
def fetch_reference(name: str) -> None:
    """Download the reference statistics NAME into the cache; an interrupted download goes on."""
    from cmrepro.metrics.reference_registry import fetch_reference as run

    click.echo(run(name))


@references.command()
@click.argument("data_path")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--dataset", required=True, help="Name of the data set, e.g. cifar10-jpeg.")
@click.option("--split", required=True, help="Its part, e.g. train.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, .npz.")
def build(data_path: str, protocol: str, dataset: str, split: str, device: str, out: Path) -> None:
    """Reference statistics of the images at DATA_PATH, which are read batch by batch."""
    from cmrepro.datasets import open_images
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.metrics.references import build_reference

    chosen, images = load_protocol(protocol), open_images(data_path)
    built = build_reference(
        images, chosen, dataset=dataset, split=split, device=device, progress=True
    )
    built.save(out)
    click.echo(out)


def main() -> None:
    """Run the command line; exit code 0 done, 1 failed, 2 wrong usage or bad input."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (click.ClickException, ValueError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"cmrepro: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"cmrepro: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
