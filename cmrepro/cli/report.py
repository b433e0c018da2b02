"""The paper and the records beside it: `table3`, `claims`, `deviations`, `report`."""

from pathlib import Path

import click

from cmrepro.cli.options import FORMAT, OUT, print_rows


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when out of step with records.")
@click.option(
    "--real",
    help="Images (data set, folder, zip, .npz) that the page shows beside samples from now on.",
)
@OUT
def report(check: bool, real: str | None, out: Path) -> None:
    """REPORT.md, tables, figures and the page results/site/index.html from results/records."""
    from cmrepro.records3 import FOLDER, read_records
    from cmrepro.report.render import check_report, write_report

    if check and real:
        raise click.UsageError("--check writes nothing; leave --real away")
    if real:
        from cmrepro.data import open_images
        from cmrepro.grids import GRID_COLUMNS, GRID_ROWS, write_grid
        from cmrepro.report.page import REAL

        read_records(out / FOLDER)  # refuse what there is no report of before a download
        source = open_images(real)
        every = max(
            1, source.num_images // (GRID_ROWS * GRID_COLUMNS)
        )  # folders go class by class
        write_grid(out / REAL, source.take(range(0, source.num_images, every)))
    if not check:
        for path in write_report(out):
            click.echo(f"wrote {path}")
    elif problems := check_report(out):
        raise SystemExit("\n".join([*problems, "run 'cmrepro report' to write them again"]))
    else:
        count = len(read_records(out / FOLDER))
        click.echo(f"REPORT.md and the page are in step with the {count} records")


@click.command()
@click.option("--variant", default="paper", show_default=True, help="paper, released or both.")
@FORMAT
def table3(variant: str, format_: str) -> None:
    """Table 3 of the paper, made from the recipes that training uses."""
    from cmrepro.training.recipes import table3_rows

    print_rows(table3_rows(variant), format_)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]…")
@OUT
@FORMAT
def claims(ids: tuple[str, ...], out: Path, format_: str) -> None:
    """Every number and ordering of the paper that this suite can test, with its verdict so far.

    Only those with an ID, if given. The verdicts are by the records in results/records of --out.
    """
    from cmrepro.paper import claim
    from cmrepro.records3 import FOLDER, read_records
    from cmrepro.report.tables import claims_rows
    from cmrepro.report.verdicts import verdicts

    wanted = {claim(id).id for id in ids}
    if not out.is_dir():
        raise ValueError(f"no folder at '{out}'; give with --out the one that holds {FOLDER}")
    folder = out / FOLDER
    records = read_records(folder) if folder.is_dir() else []
    print_rows(
        [
            {"id": row["id"], "verdict": verdict.answer, **row, "reason": verdict.reason}
            for row, verdict in zip(claims_rows(), verdicts(records), strict=True)
            if not ids or row["id"] in wanted
        ],
        format_,
    )


@click.command()
@FORMAT
def deviations(format_: str) -> None:
    """The ledger: where the paper and its official code disagree."""
    from cmrepro.report.tables import deviations_rows

    print_rows(deviations_rows(), format_)
