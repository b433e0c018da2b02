"""Training: `train`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.cli.options import DEVICE, FORMAT, OUT, parse_settings, print_rows

VARIANT = click.option(
    "--variant", type=click.Choice(["paper", "released"]), default="paper", show_default=True
)


@click.command()
@click.argument("recipe")
@VARIANT
@click.option("--name", help="Name of the checkpoint (default: the recipe's).")
@click.option("--teacher", help="EDM checkpoint: a name or a path.")
@click.option("--data", "data_path", help="Data set: a path, a name, or 'synthetic'.")
@click.option(
    "--max-unreadable",
    default=0,
    show_default=True,
    help="Leave out up to this many images that cannot be decoded, and name them.",
)
@click.option(
    "--set", "settings", multiple=True, help="Changes to the recipe, KEY=VALUE[,KEY=VALUE…]."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Continue from the newest state in the --out folder.")
@DEVICE
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all cores).")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Default: the recipe's; fp16 where it has mixed precision.",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help="Images of one forward pass (default: those of one device in the paper); gradients add "
    "up to the recipe's batch.",
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
@click.option("--plan", "planned", is_flag=True, help="Estimate memory and duration; no training.")
@FORMAT
@OUT
def train(
    recipe: str,
    variant: str,
    data_path: str | None,
    max_unreadable: int,
    settings: tuple[str, ...],
    seed: int,
    teacher: str | None,
    device: str,
    threads: int | None,
    precision: str | None,
    micro_batch: int | None,
    compiled: bool,
    planned: bool,
    format_: str,
    out: Path,
    **options: Any,
) -> None:
    """Train RECIPE: an EDM teacher, CD or CT.

    Ctrl-C (exit code 130) and SIGTERM (143) save and end the run; --resume continues it. The
    processes of torchrun share every batch, whose size is the recipe's for any number of them,
    and resume when one has died and all are restarted; --out is the same folder for all:

    \b
      TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8 \\
        --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \\
        -m cmrepro train RECIPE --device cuda --resume --out FOLDER
    """  # noqa: D301
    import torch

    from cmrepro.checkpoints.load import load_model
    from cmrepro.data import training_images
    from cmrepro.distributed import process_group
    from cmrepro.networks.presets import IMAGE_SIZES
    from cmrepro.provenance import provenance
    from cmrepro.schema import unknown
    from cmrepro.training.loop import train as run
    from cmrepro.training.plan import plan
    from cmrepro.training.recipes import load_recipe
    from cmrepro.training.step import Training

    if threads:
        torch.set_num_threads(threads)
    changes = parse_settings(settings)
    for key in changes.keys() & {"name", "variant", "method"}:
        raise ValueError(f"got --set {key}=…, which identifies the recipe; leave it out")
    changed = load_recipe(recipe, variant).replace(**changes)
    if changed.network not in IMAGE_SIZES:
        raise ValueError(unknown("network", changed.network, IMAGE_SIZES))
    how: dict[str, Any] = {
        "precision": precision,
        "micro_batch": micro_batch,
        "compiled": compiled,
    }
    if planned:
        print_rows(plan(changed, device, **how), format_)
        return
    with process_group() as rank:
        model = load_model(teacher, device) if teacher else None
        training = Training(changed, seed, model, device, **how)
        size = IMAGE_SIZES[changed.network]
        images = training_images(data_path or changed.dataset, size, max_unreadable)
        path = run(training, images, out, provenance=provenance(), **options)
    if rank == 0:
        click.echo(path)
