"""The records beside the paper: `report`, `claims`."""

from pathlib import Path

import click

from cmrepro.cli.options import FORMAT, OUT, OVERWRITE, PATH, print_rows
from cmrepro.data import open_images
from cmrepro.data.grids import GRID_COLUMNS, GRID_ROWS, REAL, write_grid
from cmrepro.paper import added_claims, claim
from cmrepro.records import FOLDER, read_records
from cmrepro.report.render import check_report, write_report
from cmrepro.report.results import claims_rows

CLAIMS = click.option(
    "--claims",
    type=PATH,
    expose_value=False,
    callback=lambda ctx, _, path: path and ctx.with_resource(added_claims(path)),
    help="Claims of your own: a .toml file.",
)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if files and records disagree.")
@click.option("--real", help="Real images (data set, folder, zip, .npz) for the page.")
@CLAIMS
@OUT
@OVERWRITE
def report(check: bool, real: str | None, out: Path, overwrite: bool) -> None:
    """Write REPORT.md, tables, figures and the page results/site/index.html from the records.

    A REPORT.md that this command has not written is replaced with --overwrite only.
    """
    if check and real:
        raise click.UsageError("--check writes nothing; leave --real out")
    records = read_records(out / FOLDER)  # before a download
    if real:
        source = open_images(real)
        # Spread over the whole set, as folders are ordered by class.
        stride = max(1, source.num_images // (GRID_ROWS * GRID_COLUMNS))
        write_grid(out / REAL, source.take(range(0, source.num_images, stride)))
    if not check:
        click.echo("\n".join(f"wrote {path}" for path in write_report(out, overwrite)))
        return
    problems, remark = check_report(out)
    if remark:
        click.echo(remark, err=True)
    if problems:
        raise SystemExit("\n".join([*problems, "write them again with 'cmrepro report'"]))
    click.echo(f"REPORT.md and the page follow from the {len(records)} records")


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]…")
@CLAIMS
@OUT
@FORMAT
def claims(ids: tuple[str, ...], out: Path, format_: str) -> None:
    """Every number and ordering of the paper that this suite can test, with its verdict so far.

    With IDs, only those claims. Verdicts are by the records in results/records of --out.
    """
    requested = {claim(id).id for id in ids}
    if not out.is_dir():
        raise ValueError(f"no folder at '{out}'; give with --out the one that holds {FOLDER}")
    records = read_records(out / FOLDER) if (out / FOLDER).is_dir() else []
    rows = claims_rows(records)
    print_rows([row for row in rows if not requested or row["id"] in requested], format_)
