"""Scoring: `evaluate`, `anchors`, `references`."""

from pathlib import Path

import click

from cmrepro.cli.options import DEVICE, FORMAT, OUT, print_rows


@click.command()
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
@DEVICE
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
    from cmrepro.data import open_images
    from cmrepro.distributed import process_group
    from cmrepro.experiments.explain import explain, explanation_rows
    from cmrepro.experiments.run import evaluate as run
    from cmrepro.files import require_writable
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.records import FOLDER, write_record
    from cmrepro.sampling import read_provenance

    if explained and (references or num_images is not None or bootstrap):
        raise click.UsageError(
            "--explain takes references and numbers of images from its two protocols; leave "
            "--reference, --num-images and --bootstrap away"
        )
    if real and not explained:
        raise click.UsageError("--real is for --explain; leave it away, or give --explain A B")
    require_writable(out / FOLDER)
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
    with process_group():
        records = run(
            source,
            chosen,
            read_provenance(Path(samples), source),
            references=references,
            num_images=num_images,
            device=device,
            bootstrap=bootstrap,
            progress=True,
        )
    rows = []
    for record in records:
        path = write_record(record, out / FOLDER)
        rows.append({"record": path.stem, "images": record.num_images, **record.scores})
        for warning in record.warnings:
            click.echo(f"warning: {record.protocol.name}: {warning}", err=True)
    if rows:
        print_rows(rows, format_)


@click.command()
@click.argument("data_path")
@click.option("--protocol", default="embedded", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the subset and of the noise.")
@OUT
def anchors(data_path: str, protocol: str, seed: int, out: Path) -> None:
    """Score real images at DATA_PATH, the same ones blurred, and noise: what the scale means."""
    from cmrepro.data import load_dataset
    from cmrepro.experiments.anchors import anchor_records
    from cmrepro.files import require_writable
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.records import FOLDER, write_record

    require_writable(out / FOLDER)
    chosen = load_protocol(protocol)
    for record in anchor_records(load_dataset(data_path), chosen, seed):
        click.echo(f"wrote {write_record(record, out / FOLDER)}")


@click.group()
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
@DEVICE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, .npz.")
def build(data_path: str, protocol: str, dataset: str, split: str, device: str, out: Path) -> None:
    """Reference statistics of the images at DATA_PATH, which are read batch by batch."""
    from cmrepro.data import open_images
    from cmrepro.files import require_writable
    from cmrepro.metrics.protocols import load_protocol
    from cmrepro.metrics.reference_files import write_statistics
    from cmrepro.metrics.references import build_reference

    require_writable(out)
    chosen, images = load_protocol(protocol), open_images(data_path)
    built = build_reference(
        images, chosen, dataset=dataset, split=split, device=device, progress=True
    )
    write_statistics(out, built)
    click.echo(out)
