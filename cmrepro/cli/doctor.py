"""Diagnosis: `doctor`."""

import click

from cmrepro.cli.options import DEVICE, FORMAT, PROTOCOL, QUIET, print_rows


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@PROTOCOL
@click.option("--reference", help="Name or file of reference statistics; default: the protocol's.")
@click.option("--real", help="Real images to check for copies; default: the reference's.")
@click.option(
    "--calibrate", is_flag=True, help="Compare scores of your CIFAR-10 TRAIN TEST with published."
)
@DEVICE
@QUIET
@FORMAT
def doctor(
    files: tuple[str, ...],
    protocol: str,
    reference: str | None,
    real: str | None,
    calibrate: bool,
    device: str,
    format_: str,
) -> None:
    """List what is installed and cached, or find causes of a wrong score in each FILE.

    FILE is a sample set (.npz, folder or .zip of images), a checkpoint, reference statistics or a
    record. Nothing is downloaded but the reference and extractor of --protocol.
    """
    if calibrate and len(files) != 2:
        found = f"got {len(files)} data sets to calibrate with"
        raise ValueError(f"{found}; give two, TRAIN TEST, e.g. cifar10-train cifar10-test")

    from cmrepro.checks.calibrate import calibration_rows, published_scores
    from cmrepro.checks.examine import examine, finding_rows
    from cmrepro.checks.findings import Settings
    from cmrepro.checks.installed import installed_rows
    from cmrepro.data import open_images
    from cmrepro.metrics.protocols import load_protocol

    errors: list[str] = []
    if calibrate:
        train, test = map(open_images, files)
        rows = calibration_rows(published_scores(), {"train": train, "test": test}, device)
    elif files:
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
