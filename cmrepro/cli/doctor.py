"""Diagnosis: `doctor`."""

import click

from cmrepro.cli.options import DEVICE, FORMAT, PROTOCOL, QUIET, print_rows


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@PROTOCOL
@click.option("--reference", help="Name or file of reference statistics; default: the protocol's.")
@click.option("--real", help="Real images to check for copies; default: the reference's.")
@DEVICE
@QUIET
@FORMAT
def doctor(
    files: tuple[str, ...],
    protocol: str,
    reference: str | None,
    real: str | None,
    device: str,
    format_: str,
) -> None:
    """List what is installed and cached, or find causes of a wrong score in each FILE.

    FILE is a sample set (.npz, folder or .zip of images), a checkpoint or a record. Nothing is
    downloaded but the reference and extractor of --protocol.
    """
    from cmrepro.checks.examine import examine, finding_rows
    from cmrepro.checks.findings import Settings
    from cmrepro.checks.installed import installed_rows
    from cmrepro.data import open_images
    from cmrepro.metrics.protocols import load_protocol

    errors: list[str] = []
    if files:
        images = open_images(real) if real else None
        settings = Settings(load_protocol(protocol), reference, images, device)
        findings, errors = examine(files, settings)
        rows = finding_rows(findings)
    else:
        rows = installed_rows()
    if rows:
        print_rows(rows, format_)
    for error in errors:
        click.echo(f"cmrepro: {error}", err=True)
    if errors:
        raise SystemExit(2)
