"""Training: `train`."""

from pathlib import Path
from typing import Any

import click
import torch

from cmrepro.checkpoints.load import load_model
from cmrepro.cli.options import COUNT, DEVICE, FORMAT, PATH, VARIANT, parse_settings, print_rows
from cmrepro.data import training_images
from cmrepro.distributed import process_group
from cmrepro.networks.presets import IMAGE_SIZES
from cmrepro.provenance import provenance
from cmrepro.schema import lookup
from cmrepro.settings import Variant
from cmrepro.training.loop import train as run
from cmrepro.training.plan import plan
from cmrepro.training.recipes import load_recipe
from cmrepro.training.step import Training


@click.command()
@click.argument("recipe")
@VARIANT
@click.option("--name", help="Name of the checkpoint (default: the recipe's).")
@click.option("--teacher", help="EDM checkpoint: a name or a path.")
@click.option("--data", help="Data set: a path or a name (default: the recipe's).")
@click.option("--channels-first", is_flag=True, help="Arrays of --data are (N, 3, H, W).")
@click.option("--set", "settings", multiple=True, help="Changes to the recipe: KEY=VALUE,…")
@click.option("--seed", default=0)
@click.option("--resume", is_flag=True, help="Continue from the newest state in the --out folder.")
@DEVICE
@click.option("--threads", type=COUNT, help="CPU threads (default: all cores).")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--micro-batch", type=COUNT, help="Images of one forward pass.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks.")
@click.option("--save-every", type=COUNT, default=500, help="Steps between states.")
@click.option("--keep", type=COUNT, default=2, help="Number of states to keep.")
@click.option("--sample-every", default=2000, help="Steps between previews; 0: none.")
@click.option("--plan", "planned", is_flag=True, help="Estimate memory and duration; no training.")
@FORMAT
@click.option("--out", type=PATH, metavar="DIR", default=Path(), help="Folder of all its files.")
def train(recipe: str, variant: Variant, format_: str, out: Path, **options: Any) -> None:
    """Train RECIPE: an EDM teacher, CD or CT.

    --sample-every writes previews: a grid of samples and a quick score. By default precision is
    the recipe's (fp16 where it has mixed precision) and each forward pass uses the paper's
    per-device batch; gradients are accumulated to the recipe's batch size.

    Ctrl-C (exit code 130) and SIGTERM (143) save and end the run; --resume continues it. The
    processes of torchrun share every batch, whose size is the recipe's for any number of them,
    and resume when one has died and all are restarted; --out is the same folder for all:

    \b
      TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8 \\
        --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \\
        -m cmrepro train RECIPE --device cuda --resume --out FOLDER
    """  # noqa: D301
    if threads := options.pop("threads"):
        torch.set_num_threads(threads)
    channels_first, changes = (
        options.pop("channels_first"),
        parse_settings(options.pop("settings")),
    )
    for key in changes.keys() & {"name", "variant", "method"}:
        raise ValueError(f"got --set {key}=…, which identifies the recipe; leave it out")
    changed = load_recipe(recipe, variant).replace(**changes)
    image_size = lookup("network", changed.network, IMAGE_SIZES)
    device, teacher, seed, data = map(options.pop, ("device", "teacher", "seed", "data"))
    how = {key: options.pop(key) for key in ("precision", "micro_batch", "compiled")}
    if options.pop("planned"):
        print_rows(plan(changed, device, **how), format_)
        return
    with process_group() as rank:
        model = load_model(teacher, device) if teacher else None
        training = Training(changed, seed, model, device, **how)
        images = training_images(data or changed.dataset, image_size, channels_first)
        path = run(training, images, out, provenance=provenance(), **options)
    if rank == 0:
        click.echo(f"wrote {path}")
