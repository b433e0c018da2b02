"""`edit`: zero-shot editing."""

from pathlib import Path
from typing import Any, get_args

import click

from cmrepro.cli import options
from cmrepro.settings import EditTask


@click.command()
@click.argument("checkpoint")
@click.argument("images")
@click.option("--task", type=click.Choice(get_args(EditTask)), required=True)
@click.option("--num-images", type=options.COUNT, default=12, help="The first images of the set.")
@click.option("--num-scales", type=int, default=40, help="Points of the time grid.")
@click.option("--missing", type=options.PATH, help="Inpainting: image, white where unknown.")
@click.option("--patch-size", type=options.COUNT, default=4, help="Super-resolution: averaged.")
@click.option("--sigma", type=float, default=0.5, help="Denoising: noise that is added.")
@click.option("--seed", type=options.SEED, default=0)
@options.DEVICE
@click.option("--out", type=options.PATH, metavar="FILE", required=True, help=".npz or .png")
@options.OVERWRITE
def edit(
    checkpoint: str, images: str, num_images: int, missing: Path | None, device: str, **how: Any
) -> None:
    """Edit IMAGES (folder, zip, .npz, data set) with a consistency model, by Algorithm 4.

    FILE.npz has the results; FILE.png shows originals, what the model gets, and results in rows.
    By default a quarter of each image is inpainted, its middle.
    """
    out: Path = how.pop("out")
    options.require_new(out, how.pop("overwrite"))
    if out.suffix not in (".npz", ".png"):
        raise ValueError(f"got --out {out}; allowed are .npz and .png")

    import numpy as np
    from PIL import Image

    from cmrepro.checkpoints.load import load_model
    from cmrepro.data import open_images
    from cmrepro.data.grids import write_grid
    from cmrepro.experiments.edit import edit_images
    from cmrepro.files import atomic_path

    source = open_images(images)
    originals = source.take(range(min(num_images, source.num_images)))
    if missing:
        how["missing"] = np.asarray(Image.open(missing).convert("L")) > 127
    model = load_model(checkpoint, options.resolve_device(device))
    edited = edit_images(model, originals, how.pop("task"), **how)
    if out.suffix == ".png":
        panel = np.concatenate([originals, *edited])
        write_grid(out, panel, rows=3, columns=len(originals))
    else:
        with atomic_path(out) as temporary:
            np.savez(temporary, edited.outputs)
    click.echo(f"wrote {out}")
