"""What is wrong: `doctor`."""

import click

from cmrepro.cli.options import DEVICE, FORMAT, print_rows


@click.command()
@click.argument("what", nargs=-1)
@click.option("--protocol", default="embedded", show_default=True, help="Name, or .toml file.")
@click.option("--reference", help="Name or file of other statistics than the protocol's.")
@click.option("--real", help="Real images that the generated ones should be like.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Score your own CIFAR-10 files TRAIN TEST beside published scores of them.",
)
@DEVICE
@FORMAT
def doctor(
    what: tuple[str, ...],
    protocol: str,
    reference: str | None,
    real: str | None,
    calibrate: bool,
    device: str,
    format_: str,
) -> None:
    """Say what is installed and cached, or what is wrong with each WHAT.

    WHAT is a sample set (.npz, folder or .zip of images), a checkpoint, reference statistics or a
    record, recognised by its content. Nothing is downloaded but the reference or extractor that
    --protocol names. Causes are sorted by their likelihood: 1 - limit / (2 measured), where clean
    inputs stay below the limit.
    """
    if calibrate:
        print_rows(_calibrated(what, device), format_)
        return
    if not what:
        from cmrepro.checks.installed import installed_rows

        print_rows(installed_rows(), format_)
        return
    from cmrepro.checks.examine import examine, finding_rows
    from cmrepro.checks.findings import Settings
    from cmrepro.data import open_images
    from cmrepro.metrics.protocols import load_protocol

    images = open_images(real) if real else None
    settings = Settings(load_protocol(protocol), reference, images, device)
    examinations = examine(what, settings)
    if rows := finding_rows(examinations):
        print_rows(rows, format_)
    if errors := dict.fromkeys(x.error for x in examinations if x.error):
        for error in errors:
            click.echo(f"cmrepro: {error}", err=True)
        raise SystemExit(2)


def _calibrated(what: tuple[str, ...], device: str) -> list[dict[str, object]]:
    from cmrepro.checks.calibrate import calibration_rows, published_scores
    from cmrepro.data import open_images

    if len(what) != 2:
        raise ValueError(
            f"got {len(what)} data sets to calibrate with; give two, TRAIN TEST, e.g. "
            "cifar10-train cifar10-test, or your own folders or zips of them"
        )
    images = {
        split: open_images(path) for split, path in zip(("train", "test"), what, strict=True)
    }
    return calibration_rows(published_scores(), images, device)
