"""Diagnosis: `doctor`."""

from dataclasses import asdict

import click

from cmrepro.cli.options import DEVICE, FORMAT, PROTOCOL, QUIET, print_rows, resolve_device
from cmrepro.files import LONGEST, DownloadError, short
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
    from cmrepro.checks.files import examine
    from cmrepro.checks.installed import installed_rows

    if not files:
        print_rows(installed_rows(), format_)
        return
    loaded, device = load_protocol(protocol), resolve_device(device)
    rows: list[dict[str, str]] = []
    errors = []
    for file in files:
        try:
            findings = examine(file, loaded, reference, device)
        except DownloadError:
            raise
        except (ValueError, OSError) as error:
            errors.append(" ".join(str(error).split()))
        else:
            rows += [{"file": file} | asdict(x) for x in findings]
            rows += [] if findings else [{"file": file, "finding": "none"}]
    if rows:
        print_rows(rows, format_)
    for text in errors:
        click.echo(f"cmrepro: {short(text, LONGEST)}", err=True)
    if errors:
        raise SystemExit(2)
