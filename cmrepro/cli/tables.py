"""Tables that need neither records nor torch: `table3`, `deviations`, `recipe`."""

import click

from cmrepro.cli.options import FORMAT, VARIANT, print_rows
from cmrepro.report.tables import deviations_rows
from cmrepro.settings import Variant
from cmrepro.training.recipes import recipe_list, recipe_rows, table3_rows


@click.command()
@click.option("--variant", type=click.Choice(["paper", "released", "both"]), default="paper")
@FORMAT
def table3(variant: str, format_: str) -> None:
    """Table 3 of the paper, made from the recipes that training uses.

    The variant "released" has the values of the official code, "both" shows where they differ.
    """
    print_rows(table3_rows(variant), format_)


@click.command()
@FORMAT
def deviations(format_: str) -> None:
    """Deviations of the official code from the paper, and the side that this project follows."""
    print_rows(deviations_rows(), format_)


@click.command()
@click.argument("name", required=False)
@VARIANT
@FORMAT
def recipe(name: str | None, variant: Variant, format_: str) -> None:
    """All recipes; or every field of recipe NAME, with the deviation behind each that differs."""
    print_rows(recipe_rows(name, variant) if name else recipe_list(), format_)
