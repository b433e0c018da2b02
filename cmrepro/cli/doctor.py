"""Diagnosis: `doctor`."""

import click

from cmrepro.cli.options import DEVICE, FORMAT, print_rows


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--protocol", default="embedded", show_default=True, help="Name, or .toml file.")
@click.option("--reference", help="Name or file of reference statistics; default: the protocol's.")
@click.option("--real", help="Real images that may have been copied; default: the reference's.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Score your own CIFAR-10 files TRAIN TEST beside published scores of them.",
)
@DEVICE
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
    if calibrate:
        _calibrate(files, device, format_)
        return
    if not files:
        from cmrepro.checks.installed import installed_rows

        print_rows(installed_rows(), format_)
        return
    from cmrepro.checks.examine import examine, finding_rows
    from cmrepro.checks.findings import Settings
    from cmrepro.data import open_images
    from cmrepro.metrics.protocols import load_protocol

    images = open_images(real) if real else None
    settings = Settings(load_protocol(protocol), reference, images, device)
    findings, errors = examine(files, settings)
    if findings:
        print_rows(finding_rows(findings), format_)
    for error in errors:
        click.echo(f"cmrepro: {error}", err=True)
    if errors:
        raise SystemExit(2)


def _calibrate(files: tuple[str, ...], device: str, format_: str) -> None:
    from cmrepro.checks.calibrate import calibration_rows, published_scores
    from cmrepro.data import open_images

    if len(files) != 2:
        raise ValueError(
            f"got {len(files)} data sets to calibrate with; give two, TRAIN TEST, e.g. "
            "cifar10-train cifar10-test, or your own folders or zips of them"
        )
    train, test = (open_images(file) for file in files)
    rows = calibration_rows(published_scores(), {"train": train, "test": test}, device)
    print_rows(rows, format_)
