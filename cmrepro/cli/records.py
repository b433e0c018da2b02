"""Records: `redo`, `compare`, `records validate|merge`."""

from pathlib import Path
from typing import Any

import click

from cmrepro.cli.options import FORMAT, OUT, print_rows

FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command()
@click.argument("record")
@click.option("--run", "running", is_flag=True, help="Run the commands and compare.")
@click.option("--samples", type=click.Path(path_type=Path), help="The images, not sampled again.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The checkpoint's file.")
@click.option("--reference", type=click.Path(path_type=Path), help="The reference's file.")
@click.option("--protocol", type=click.Path(path_type=Path), help="The protocol's .toml.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for samples and record (default: the current one; with --run none is kept).",
)
@FORMAT
def redo(record: str, running: bool, out: Path | None, format_: str, **given: Any) -> None:
    """The commands that make RECORD (a file, or an id in results/records) again.

    With --run they run, and hashes and scores are compared with those of the record: exit code 1
    where the images are others on the same platform, or a score differs by more than 1e-4 of it.
    """
    import shlex
    import tempfile

    from cmrepro.experiments.redo import compare_redone, redo_commands
    from cmrepro.records import FOLDER, find_record, read_record

    recorded = find_record(record)
    threads = recorded.provenance.threads
    if not running:
        for arguments in redo_commands(recorded, out or Path(), given):
            click.echo(f"OMP_NUM_THREADS={threads} {shlex.join(['cmrepro', *arguments])}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        _run(redo_commands(recorded, folder, given), threads)
        redone = compare_redone(recorded, read_record(folder / FOLDER / f"{recorded.id}.json"))
    print_rows(redone.rows, format_)
    if redone.other_platform:
        click.echo(
            f"another platform ({'; '.join(redone.other_platform)}): hashes may differ, scores "
            "are compared",
            err=True,
        )
    if redone.failed:
        raise SystemExit(1)


def _run(commands: list[list[str]], threads: int) -> None:
    """Run command lines in this process on so many threads; what they print goes to stderr."""
    import contextlib
    import sys

    import torch

    from cmrepro.cli import sample, score

    known = {"sample": sample.sample, "evaluate": score.evaluate, "anchors": score.anchors}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            for name, *arguments in commands:
                known[name].main(arguments, f"cmrepro {name}", standalone_mode=False)
    finally:
        torch.set_num_threads(before)


@click.command()
@click.argument("first")
@click.argument("second")
@FORMAT
def compare(first: str, second: str, format_: str) -> None:
    """Explain how records FIRST and SECOND (files, or ids in results/records) differ."""
    from cmrepro.records import find_record
    from cmrepro.report.compare import compare as run

    compared = run(find_record(first), find_record(second))
    print_rows([*compared.settings, *compared.scores], format_)
    click.echo(compared.parted, err=True)
    if any(row["interval"] is None for row in compared.scores):
        click.echo("Intervals are unknown without --bootstrap: one set each.", err=True)
    why = "; ".join(compared.reasons)
    click.echo(f"Not comparable: {why}." if why else "The scores are comparable.", err=True)


@click.group()
def records() -> None:
    """Records: validate, merge."""


@records.command()
@FILES
def validate(files: tuple[Path, ...]) -> None:
    """Check records in FILES (files or folders) against the schema; one line a problem."""
    from cmrepro.records import read_record

    paths = [path for file in files for path in (sorted(file.glob("*.json")) or [file])]
    problems = []
    for path in paths:
        try:
            read_record(path)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        click.echo("\n".join(problems), err=True)
        raise SystemExit(1 if all(path.is_file() for path in paths) else 2)
    click.echo(f"valid records: {len(paths)}")


@records.command()
@FILES
@OUT
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Bring the records in FILES (files or folders) into results/records of the output folder."""
    from cmrepro.records import FOLDER, merge_records

    for path in merge_records(files, out / FOLDER):
        click.echo(f"wrote {path}")
