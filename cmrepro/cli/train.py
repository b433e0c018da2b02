"""Training: `train`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.cli.options import DEVICE, FORMAT, OUT, parse_settings, print_rows


@click.command()
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
@click.option(
    "--set", "settings", multiple=True, help="Changes to the recipe, KEY=VALUE[,KEY=VALUE…]."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the newest state in the output folder.")
@DEVICE
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
    settings: tuple[str, ...],
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

    \b
      TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8 \\
        --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \\
        -m cmrepro train RECIPE --device cuda --resume --out FOLDER
    """  # noqa: D301
    import torch

    from cmrepro.distributed import process_group
    from cmrepro.provenance import provenance
    from cmrepro.records import Provenance
    from cmrepro.schema import convert
    from cmrepro.training.loop import Rhythm, recipe_images
    from cmrepro.training.loop import train as run
    from cmrepro.training.plan import plan
    from cmrepro.training.recipes import load_recipe

    if threads:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe, variant).replace(**parse_settings(settings))
    if planned:
        how = {key: choices[key] for key in ("precision", "micro_batch", "compiled")}
        print_rows(plan(chosen, device, **how), format_)
        return
    with process_group() as rank:
        path = run(
            chosen,
            recipe_images(chosen, data_path, max_unreadable),
            out,
            device=device,
            rhythm=Rhythm(save_every=save_every, sample_every=sample_every),
            provenance=convert(Provenance, provenance(), ""),
            **choices,
        )
    if rank == 0:
        click.echo(path)
