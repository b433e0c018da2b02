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
    """{"total_steps": 20, …} from "total_steps=20,…": numbers, true/false, else text."""
    settings: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"got --set {part}; allowed is KEY=VALUE[,KEY=VALUE…]")
        settings[key.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
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
