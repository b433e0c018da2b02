"""Recipes by name, and Table 3 made from them."""

import functools
import tomllib
from importlib import resources
from typing import Any

from msgspec.structs import fields

from cmrepro.paper import TABLE3_RECIPES, deviations
from cmrepro.schema import convert, unknown
from cmrepro.settings import Recipe, Variant


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("recipes.toml").read_text())


def recipe_names() -> list[str]:
    """All recipes, in the order of recipes.toml."""
    return list(_tables()["recipes"])


def load_recipe(name: str, variant: str = "paper") -> Recipe:
    """The named recipe in the variant "paper" or "released"."""
    tables = _tables()
    if name not in tables["recipes"]:
        raise ValueError(unknown("recipe", name, tables["recipes"]))
    values: dict[str, Any] = {"name": name, "variant": variant, "stands_for": name}
    values |= tables["defaults"] | tables["recipes"][name]
    released = values.pop("released", {})
    return convert(Recipe, values | (released if variant == "released" else {}), "")


def recipe_rows(name: str, variant: str = "paper") -> list[dict[str, str]]:
    """Rows of field, value, the other variant's value where it differs, and its deviation."""
    recipe = load_recipe(name, variant)
    other = load_recipe(name, "released" if variant == "paper" else "paper")
    rows = []
    for field in fields(Recipe):
        value, differs = getattr(recipe, field.name), getattr(other, field.name)
        row = {"field": field.name, "value": _text(value)}
        if value != differs and field.name != "variant":
            row |= {
                f"in {other.variant}": _text(differs),
                "deviation": _deviation(name, field.name),
            }
        rows.append(row)
    return rows


def _deviation(recipe: str, field: str) -> str:
    """Id of the deviation of which the variants take different sides in this field."""
    for d in deviations():
        if d.follow == "both" and field in d.fields and recipe in d.recipes:
            return d.id
    raise ValueError(f"recipe '{recipe}' differs in {field}; deviations.toml must say why")


def table3(variant: Variant = "paper") -> list[dict[str, str]]:
    """Table 3, 13 rows of a label and six cells, printed as the paper prints it."""
    recipes = {column: load_recipe(name, variant) for column, name in TABLE3_RECIPES.items()}
    return [
        {"hyperparameter": label} | {column: cell(r) for column, r in recipes.items()}
        for label, cell in TABLE3_ROWS.items()
    ]


def table3_rows(variant: str) -> list[dict[str, str]]:
    """Table 3 of a variant, or of "both": cells that differ then read "paper | released"."""
    tables = {"paper": table3("paper"), "released": table3("released")}
    tables["both"] = [
        {k: v if v == released[k] else f"{v} | {released[k]}" for k, v in paper.items()}
        for paper, released in zip(tables["paper"], tables["released"], strict=True)
    ]
    if variant not in tables:
        raise ValueError(unknown("variant", variant, tables))
    return tables[variant]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


TABLE3_ROWS = {
    "Learning rate": lambda r: f"{r.learning_rate:.0e}".replace("e-0", "e-"),
    "Batch size": lambda r: str(r.batch_size),
    "mu": lambda r: _number(r.target_ema),
    "mu0": lambda r: _number(r.mu0),
    "s0": lambda r: _text(r.s0),
    "s1": lambda r: _text(r.s1),
    "N": lambda r: _text(r.num_scales),
    "ODE solver": lambda r: (r.solver or "").capitalize(),
    "EMA decay rate": lambda r: str(r.ema_rate),
    "Training iterations": lambda r: f"{r.total_steps // 1000}k",
    "Mixed-precision (FP16)": lambda r: "Yes" if r.mixed_precision else "No",
    "Dropout probability": lambda r: f"{r.dropout:.1f}",
    "Number of GPUs": lambda r: str(r.num_gpus),
}
