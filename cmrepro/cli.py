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


@cli.command()
@click.argument("recipe")
@click.option("--variant", default="paper", help="paper or released.")
@click.option("--teacher", help="EDM checkpoint: a bundled name or a path.")
@click.option("--data", "data_path", help="Data set: a path, a name, or 'synthetic'.")
@click.option("--set", "settings", help="Changes to the recipe, KEY=VALUE[,KEY=VALUE…].")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the state in the output folder.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@OUT
def train(
    recipe: str,
    variant: str,
    teacher: str | None,
    data_path: str | None,
    settings: str | None,
    seed: int,
    resume: bool,
    device: str,
    threads: int | None,
    out: Path,
) -> None:
    """Train RECIPE: an EDM teacher, CD or CT."""
    import torch

    from cmrepro.datasets import load_dataset
    from cmrepro.experiments.provenance import provenance
    from cmrepro.training.loop import train as run
    from cmrepro.training.recipes import load_recipe

    if threads:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe, variant).replace(**parse_settings(settings))  # type: ignore[arg-type]
    dataset = load_dataset(data_path or chosen.dataset)
    path = run(
        chosen,
        dataset,
        out,
        seed=seed,
        teacher=teacher,
        resume=resume,
        device=device,
        provenance=provenance(),
    )
    click.echo(path)


FORMAT = click.option(
    "--format",
    "format_",
    default="table",
    show_default=True,
    help="table, md, csv, json or latex.",
)


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
@click.option("--profile", default="demo", show_default=True, help="Suite to run.")
@click.option("--num-samples", type=int, help="Images a model and seed (default: the suite's).")
@click.option("--seeds", type=int, help="Number of seeds (default: the suite's).")
@OUT
def reproduce(
    dataset: str, profile: str, num_samples: int | None, seeds: int | None, out: Path
) -> None:
    """The main job for DATASET (cifar10): sample, score, write results/ and REPORT.md."""
    from cmrepro.experiments.reproduce import load_suite
    from cmrepro.experiments.reproduce import reproduce as run
    from cmrepro.report.render import write_report

    suite = load_suite(dataset, profile)
    run(
        suite,
        out,
        num_images=suite.num_images if num_samples is None else num_samples,
        seeds=suite.seeds if seeds is None else seeds,
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
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sample set, .npz.")
def sample(checkpoint: str, steps: str, num: int, seed: int, out: Path) -> None:
    """Sample images from CHECKPOINT into an .npz with its origin in a .json beside it."""
    from cmrepro.checkpoints.io import load_model
    from cmrepro.experiments.run import sampled_origin, write_sample_set
    from cmrepro.experiments.sampling import sample as run
    from cmrepro.experiments.sampling import sampler_settings

    if out.suffix != ".npz":
        raise ValueError(f"got --out {out}; allowed is a file ending in .npz")
    model = load_model(checkpoint)
    settings = sampler_settings(model.info, parse_steps(steps))
    samples = run(model, settings, num, seed, model.image_size, progress=model.path.stem)
    origin = sampled_origin(model, settings, seed, samples.noise_sha256)
    write_sample_set(out, samples.stages[-1], origin)
    click.echo(out)


@cli.command()
@click.argument("samples")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--reference", type=click.Path(path_type=Path), help="File of other statistics.")
@click.option("--num-images", type=int, help="Score the first so many (default: the protocol's).")
@click.option("--name", help="What the record calls the images (default: the file's name).")
@FORMAT
@OUT
def evaluate(
    samples: str,
    protocol: str,
    reference: Path | None,
    num_images: int | None,
    name: str | None,
    format_: str,
    out: Path,
) -> None:
    """Score SAMPLES (.npz, folder or zip of images) and write the record to results/records."""
    from cmrepro.datasets import load_dataset
    from cmrepro.experiments.run import evaluate as run
    from cmrepro.experiments.run import read_origin
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.records import write_record

    chosen = load_protocol(protocol)
    dataset = load_dataset(samples, name)
    origin = read_origin(Path(samples), dataset.name)
    record = run(dataset.images, chosen, origin, reference=reference, num_images=num_images)
    path = write_record(record, out / "results" / "records")
    print_rows([{"record": path.stem, "images": record.num_images, **record.scores}], format_)
    for warning in record.warnings:
        click.echo(f"warning: {warning}", err=True)


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
@click.option("--grid", default=18, show_default=True, help="Points of the grid.")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--num", default=2000, show_default=True, help="Images at each time.")
@click.option("--seed", default=1000, show_default=True, help="One that is not reported.")
@FORMAT
def search_times(
    checkpoint: str, grid: int, protocol: str, num: int, seed: int, format_: str
) -> None:
    """Scores of 2-step sampling by its second time, over a grid; choose that of the least FID."""
    from cmrepro.checkpoints.io import load_model
    from cmrepro.experiments.search import two_step_scores
    from cmrepro.metrics.protocols import load_protocol

    rows = two_step_scores(load_model(checkpoint), load_protocol(protocol), grid, num, seed)
    print_rows(rows, format_)


@cli.group()
def references() -> None:
    """Reference statistics: list, build."""


@references.command("list")
@FORMAT
def list_references(format_: str) -> None:
    """The reference statistics that come with the package."""
    from dataclasses import asdict

    from cmrepro.metrics.references import ReferenceStatistics, bundled_references

    rows = [
        {"name": name, **asdict(ReferenceStatistics.load(path).metadata)}
        for name, path in bundled_references().items()
    ]
    print_rows(rows, format_)


@references.command()
@click.argument("data_path")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--dataset", required=True, help="Name of the data set, e.g. cifar10-jpeg.")
@click.option("--split", required=True, help="Its part, e.g. train.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, .npz.")
def build(data_path: str, protocol: str, dataset: str, split: str, out: Path) -> None:
    """Reference statistics of the images at DATA_PATH."""
    from cmrepro.datasets import load_dataset
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.metrics.references import build_reference

    chosen = load_protocol(protocol)
    images = load_dataset(data_path).images
    build_reference(images, chosen, dataset=dataset, split=split, progress=True).save(out)
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
