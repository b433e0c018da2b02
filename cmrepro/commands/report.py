"""The paper and the records beside it: `table3`, `claims`, `deviations`, `report`."""

from pathlib import Path

import click

from cmrepro.commands.options import FORMAT, OUT, print_rows


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail when out of step with records.")
@OUT
def report(check: bool, out: Path) -> None:
    """Tables, figures and REPORT.md from results/records."""
    from cmrepro.report.render import check_report, write_report

    if not check:
        for path in write_report(out):
            click.echo(f"wrote {path}")
    elif problems := check_report(out):
        raise SystemExit("\n".join([*problems, "run 'cmrepro report' to write them again"]))


@click.command()
@click.option("--variant", default="paper", show_default=True, help="paper, released or both.")
@FORMAT
def table3(variant: str, format_: str) -> None:
    """Table 3 of the paper, made from the recipes that training uses."""
    from cmrepro.training.recipes import table3_rows

    print_rows(table3_rows(variant), format_)


@click.command()
@FORMAT
def claims(format_: str) -> None:
    """Every number and ordering of the paper that this suite can test."""
    from cmrepro.report.tables import claims_rows

    print_rows(claims_rows(), format_)


@click.command()
@FORMAT
def deviations(format_: str) -> None:
    """The ledger: where the paper and its official code disagree."""
    from cmrepro.report.tables import deviations_rows

    print_rows(deviations_rows(), format_)
