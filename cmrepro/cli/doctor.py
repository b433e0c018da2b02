"""Diagnosis: `doctor`."""

import click

from cmrepro.cli.options import DEVICE, FORMAT, PROTOCOL, QUIET, print_rows, resolve_device
from cmrepro.files import LONGEST, short
from cmrepro.metrics.protocols import load_protocol


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@PROTOCOL
@click.option("--reference", help="Name or file of reference statistics; default: the protocol's.")
@DEVICE
@QUIET
@FORMAT
def doctor(
    files: tuple[str, ...],
    protocol: str,
    reference: str | None,
    device: str,
    format_: str,
) -> None:
    """List what is installed and cached, or find causes of a wrong score in each FILE.

    FILE is a sample set (.npz, folder or .zip of images), a checkpoint or a record. Nothing is
    downloaded but the reference and extractor of --protocol.
    """
    from cmrepro.checks.examine import examine, finding_rows
    from cmrepro.checks.installed import installed_rows

    errors: list[str] = []
    if files:
        loaded, device = load_protocol(protocol), resolve_device(device)
        findings, errors = examine(files, loaded, reference, device)
        rows = finding_rows(findings)
    else:
        rows = installed_rows()
    if rows:
        print_rows(rows, format_)
    for error in errors:
        click.echo(f"cmrepro: {short(error, LONGEST)}", err=True)
    if errors:
        raise SystemExit(2)
