"""Records: `compare`, `records validate|merge`."""

from pathlib import Path

import click

from cmrepro.cli.options import FORMAT, OUT, OVERWRITE, PATH, print_rows
from cmrepro.files import LONGEST, short
from cmrepro.records import FOLDER, merge_records, read_record, record_files
from cmrepro.report.compare import compare as run

FILES = click.argument("files", nargs=-1, required=True, type=PATH)


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@FORMAT
def compare(first: Path, second: Path, format_: str) -> None:
    """Explain the differences between records FIRST and SECOND (files)."""
    compared = run(read_record(first), read_record(second))
    print_rows([*compared.settings, *compared.scores], format_)
    why = "; ".join(compared.agreement.different.values())
    conclusion = [f"Not comparable: {why}." if why else "The scores are comparable."]
    if any(row["interval"] is None for row in compared.scores):
        conclusion.append("Intervals are unknown without --intervals: one sample set each.")
    conclusion += [f"Note: {note}." for note in compared.agreement.notes]
    # The other formats are for programs, which read nothing but rows.
    click.echo("\n".join([compared.divergence, *conclusion]), err=format_ not in ("table", "md"))


@click.group()
def records() -> None:
    """Records: validate, merge."""


@records.command()
@FILES
def validate(files: tuple[Path, ...]) -> None:
    """Check the records in FILES (files or folders); one line for each problem.

    The exit code is 1 if a record is invalid, 2 if a file is missing or a folder holds no record.
    """
    paths = [path for file in files for path in (record_files(file) or [file])]
    code = 0
    for path in paths:
        try:
            if not path.is_file():
                problem = "a folder without records" if path.is_dir() else "no such file"
                raise ValueError(f"{path}: {problem}; give records (.json) or their folder")
            read_record(path)
        except ValueError as error:
            click.echo(short(error, LONGEST), err=True)
            code = max(code, 1 if path.is_file() else 2)
    if code:
        raise SystemExit(code)
    click.echo(f"valid records: {len(paths)}")


@records.command()
@FILES
@OUT
@OVERWRITE
def merge(files: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Copy the records in FILES (files or folders) into results/records of the output folder."""
    for path in merge_records(files, out / FOLDER, overwrite):
        click.echo(f"wrote {path}")
