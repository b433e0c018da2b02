"""The command line: the commands in one group, and what becomes of their errors."""

import sys

import click

from cmrepro.cli import checkpoints, doctor, records, report, sample, score, train
from cmrepro.files import DownloadError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cmrepro")
def cli(debug: bool) -> None:
    """Reproduce "Consistency Models" (Song et al. 2023) and measure how well."""


for command in (
    sample.reproduce,
    report.report,
    report.table3,
    report.claims,
    report.deviations,
    train.recipe,
    train.train,
    checkpoints.checkpoints,
    sample.sample,
    sample.search_times,
    score.evaluate,
    score.anchors,
    score.references,
    records.redo,
    records.compare,
    records.records,
    doctor.doctor,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; exit code 0 done, 1 failed, 2 wrong usage or bad input."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        bad_input = isinstance(error, click.ClickException | ValueError | OSError)
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        text = text if bad_input else f"{type(error).__name__}: {text}"
        print(f"cmrepro: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2 if bad_input and not isinstance(error, DownloadError) else 1)
