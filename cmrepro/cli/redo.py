"""A record made again: `redo`."""

import contextlib
import shlex
import sys
import tempfile
from pathlib import Path

import click
import torch

from cmrepro.cli.main import cli
from cmrepro.cli.options import FORMAT, OVERWRITE, PATH, print_rows
from cmrepro.experiments.redo import compare_redone, redo_commands
from cmrepro.records import FOLDER, find_record, read_record


@click.command()
@click.argument("record")
@click.option("--run", is_flag=True, help="Run the commands and compare the results.")
@click.option("--samples", type=PATH, help="Sample set to score, instead of sampling again.")
@click.option("--checkpoint", type=PATH, help="File of the checkpoint.")
@click.option("--reference", type=PATH, help="File of the reference statistics.")
@click.option("--protocol", type=PATH, help="The protocol's .toml file.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for samples and record.")
@OVERWRITE
@FORMAT
def redo(
    record: str, run: bool, out: Path | None, overwrite: bool, format_: str, **files: Path | None
) -> None:
    """Print the commands that make RECORD (a file, or an id in results/records) again.

    With --run they run, in a temporary folder unless --out names another, and their hashes and
    scores are compared with the record's. The exit code is 1 if the images differ on the same
    platform, or a score by more than 1e-4 of its value.
    """
    recorded = find_record(record)
    threads = recorded.provenance.threads
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary if run else "")
        commands = redo_commands(recorded, folder, files)
        if overwrite:
            commands = [[*arguments, "--overwrite"] for arguments in commands]
        if not run:
            for arguments in commands:
                click.echo(f"OMP_NUM_THREADS={threads} {shlex.join(['cmrepro', *arguments])}")
            return
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                for arguments in commands:
                    cli.main(arguments, "cmrepro", standalone_mode=False)
        finally:
            torch.set_num_threads(before)
        redone = compare_redone(recorded, read_record(folder / FOLDER / f"{recorded.id}.json"))
    print_rows(redone.rows, format_)
    if redone.other_platform:
        found = "; ".join(redone.other_platform)
        click.echo(f"another platform ({found}): hashes may differ, scores are compared", err=True)
    if redone.failed:
        raise SystemExit(1)
