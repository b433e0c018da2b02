"""Training: `train`."""

import contextlib
from pathlib import Path
from typing import Any

import click

from cmrepro.cli import options
from cmrepro.data import training_images
from cmrepro.files import locked
from cmrepro.schema import lookup
from cmrepro.settings import Variant
from cmrepro.training.recipes import load_recipe


@click.command()
@click.argument("recipe")
@options.VARIANT
@click.option("--name", help="Name of the checkpoint (default: the recipe's).")
@click.option("--teacher", help="EDM checkpoint: a name or a path.")
@click.option("--data", help="Data set: a path or a name (default: the recipe's).")
@click.option("--channels-first", is_flag=True, help="Arrays of --data are (N, 3, H, W).")
@click.option("--set", "settings", multiple=True, help="Changes, added up: KEY=VALUE,…")
@click.option("--seed", type=options.SEED, default=0)
@click.option("--resume", is_flag=True, help="Continue from the newest state in --out, if any.")
@options.DEVICE
@click.option("--threads", type=options.COUNT, help="CPU threads (default: all cores).")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--micro-batch", type=options.COUNT, help="Images of one forward pass.")
@click.option("--save-every", type=options.COUNT, default=500, help="Steps between states.")
@click.option("--sample-every", type=options.SEED, default=2000, help="Preview interval; 0: none.")
@options.QUIET
@click.option("--out", type=options.PATH, metavar="DIR", default=Path(), help="Folder of it all.")
def train(recipe: str, variant: Variant, out: Path, **arguments: Any) -> None:
    """Train RECIPE: an EDM teacher, CD or CT.

    --sample-every writes previews, grids of samples. By default precision is the recipe's (fp16
    where it has mixed precision) and each forward pass uses the paper's per-device batch;
    gradients are accumulated to the recipe's batch size.

    Ctrl-C (exit code 130) and SIGTERM (143) save and end the run; --resume continues it. The
    processes of torchrun share every batch, whose size is the recipe's for any number of them,
    and resume when one has died and all are restarted; --out is the same folder for all:

    \b
      TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8 \\
        --rdzv-backend c10d --rdzv-endpoint HOST:29500 --max-restarts 3 \\
        -m cmrepro train RECIPE --device cuda --resume --out FOLDER
    """  # noqa: D301
    channels_first = arguments.pop("channels_first")
    changes = options.parse_settings(arguments.pop("settings"))
    for key in changes.keys() & {"name", "variant", "method"}:
        raise ValueError(f"got --set {key}=…, which identifies the recipe; leave it out")
    changed = load_recipe(recipe, variant).replace(**changes)

    import torch

    from cmrepro.checkpoints.load import load_model
    from cmrepro.distributed import process_group
    from cmrepro.networks.presets import IMAGE_SIZES
    from cmrepro.provenance import provenance
    from cmrepro.training.loop import train as run
    from cmrepro.training.step import Training

    if threads := arguments.pop("threads"):
        torch.set_num_threads(threads)
    image_size = lookup("network", changed.network, IMAGE_SIZES)
    device, teacher, seed, data = map(arguments.pop, ("device", "teacher", "seed", "data"))
    device = options.resolve_device(device)
    how = {key: arguments.pop(key) for key in ("precision", "micro_batch")}
    with process_group() as rank:
        model = load_model(teacher, device) if teacher else None
        training = Training(changed, seed, model, device, **how)
        images = training_images(data or changed.dataset, image_size, channels_first)
        with locked(out) if rank == 0 else contextlib.nullcontext():
            path = run(training, images, out, provenance=provenance(), **arguments)
    if rank == 0:
        click.echo(f"wrote {path}, the states, log and previews beside it")
