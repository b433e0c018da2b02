"""Scoring: `evaluate`, `anchors`, `references list|fetch|build`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.cli import options
from cmrepro.data import load_dataset, open_images
from cmrepro.files import require_writable
from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import FOLDER, RunRecord, Stated, write_record


@click.command()
@click.argument("samples")
@click.option("--protocol", multiple=True, default=["embedded"], help="Name or .toml.")
@click.option("--reference", "references", multiple=True, help="Other statistics: name or file.")
@click.option("--num-images", type=options.COUNT, help="Score the first N images.")
@click.option("--model", help="Name of the model in the record.")
@click.option("--nfe", type=options.COUNT, help="Network evaluations per image.")
@click.option("--seed", type=options.SEED, help="Seed of the noise.")
@click.option("--times", callback=options.parse_times, help="Sampling times: t1,t2,…")
@click.option("--trained-on", "dataset", help="Name of the training images: cifar10-train.")
@click.option("--images-seen", type=options.COUNT, help="Images seen in training.")
@click.option("--batch-size", type=options.COUNT, help="Global batch of the training.")
@click.option("--intervals", is_flag=True, help="Give 95 % intervals of the scores.")
@click.option("--explain", "explained", nargs=2, metavar="A B", help="Protocols to compare.")
@click.option("--real", help="Real images, for --explain between different extractors.")
@options.CHANNELS_FIRST
@options.DEVICE
@options.QUIET
@options.FORMAT
@options.OUT
@options.OVERWRITE
def evaluate(samples: str, format_: str, out: Path, overwrite: bool, **arguments: Any) -> None:
    """Score SAMPLES (.npz, .npy, folder, zip or LMDB) and write records to results/records.

    Several --protocol score in one pass; give --reference once per protocol, or not at all.
    --model, --nfe, --seed, --times and, of its training, --trained-on, --images-seen and
    --batch-size describe images from elsewhere; seeds of one model are averaged. A JSON beside
    SAMPLES says the same (SAMPLES.provenance.json), as for samples of this suite. --explain A B
    attributes the difference between two protocols step by step.
    Under `torchrun … -m cmrepro evaluate …` each process takes its share of the images.
    """
    explained, real = arguments.pop("explained"), arguments.pop("real")
    stated: Any = {key: arguments.pop(key) for key in Stated.__annotations__}
    if explained and any(arguments[key] for key in ("references", "num_images", "intervals")):
        excluded = "--reference, --num-images and --intervals"
        raise click.UsageError(f"the protocols of --explain decide; leave {excluded} out")
    if real and not explained:
        raise click.UsageError("--real is for --explain; leave it out, or give --explain A B")
    require_writable(out / FOLDER)

    from cmrepro.distributed import process_group
    from cmrepro.experiments.explain import explain
    from cmrepro.experiments.run import evaluate as run
    from cmrepro.experiments.run import write_results
    from cmrepro.sample_sets import read_provenance

    arguments["device"] = options.resolve_device(arguments["device"])
    protocols = [load_protocol(name) for name in explained or arguments.pop("protocol")]
    images = open_images(samples, channels_first=arguments.pop("channels_first"))
    if explained:
        real_images, device = open_images(real) if real else None, arguments["device"]
        options.print_rows(explain(images, *protocols, real=real_images, device=device), format_)
        return
    provenance = read_provenance(Path(samples), images).stating(**stated)
    with process_group() as rank:
        records = run(images, protocols, provenance, progress=True, **arguments)
    for record in records:
        click.echo(f"wrote {write_results(record, images, out, overwrite)}", err=True)
        for warning in record.warnings:
            click.echo(f"warning: {record.protocol.name}: {warning}", err=True)
    if rank == 0:
        rows = [{"record": r.id, "num_images": r.num_images} | scores(r) for r in records]
        options.print_rows(rows, format_)


def scores(record: RunRecord) -> dict[str, float]:
    """Scores by metric, each followed by both ends of its 95 % interval where it has one."""
    values: dict[str, float] = {}
    for metric, value in record.scores.items():
        values[metric] = value
        if record.uncertainty and (ends := record.uncertainty.intervals.get(metric)):
            values |= zip((f"{metric}_low", f"{metric}_high"), ends, strict=True)
    return values


@click.command()
@click.argument("data_path")
@options.PROTOCOL
@click.option("--seed", type=options.SEED, default=0, help="Seed of the noise and the subset.")
@options.QUIET
@options.OUT
@options.OVERWRITE
def anchors(data_path: str, protocol: str, seed: int, out: Path, overwrite: bool) -> None:
    """Score real images at DATA_PATH, the same blurred, and noise: points of reference."""
    require_writable(out / FOLDER)

    from cmrepro.experiments.anchors import anchor_records

    loaded = load_protocol(protocol)
    for record in anchor_records(load_dataset(data_path), loaded, seed):
        click.echo(f"wrote {write_record(record, out / FOLDER, overwrite)}")


@click.group()
def references() -> None:
    """Reference statistics: list, fetch, build."""


@references.command("list")
@options.FORMAT
def list_references(format_: str) -> None:
    """Named reference statistics: bundled, to fetch, or to build."""
    from cmrepro.metrics.references import reference_rows

    options.print_rows(reference_rows(), format_)


@references.command()
@click.argument("name")
@options.QUIET
def fetch(name: str) -> None:
    """Download the reference statistics NAME into the cache; an interrupted download continues."""
    from cmrepro.metrics.references import fetch_reference

    click.echo(f"wrote {fetch_reference(name)}")


@references.command()
@click.argument("data_path")
@options.PROTOCOL
@click.option("--dataset", required=True, help="Name of the data set, e.g. cifar10-jpeg.")
@click.option("--split", required=True, help="Part of the data set, e.g. train.")
@options.CHANNELS_FIRST
@options.DEVICE
@options.QUIET
@options.OUT_NPZ
@options.OVERWRITE
def build(
    data_path: str,
    protocol: str,
    channels_first: bool,
    out: Path,
    overwrite: bool,
    **settings: str,
) -> None:
    """Write statistics of the images at DATA_PATH to FILE.npz; images are read batch by batch."""
    options.require_new(out, overwrite)

    from cmrepro.distributed import process_group
    from cmrepro.metrics.reference_files import write_statistics
    from cmrepro.metrics.references import build_reference

    settings["device"] = options.resolve_device(settings["device"])
    loaded, images = load_protocol(protocol), open_images(data_path, None, None, channels_first)
    with process_group() as rank:
        built = build_reference(images, loaded, progress=True, **settings)
    if rank == 0:
        write_statistics(out, built)
        click.echo(f"wrote {out}")
