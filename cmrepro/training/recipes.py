"""Recipes by name, and Table 3 made from them."""

import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from cmrepro.paper import TABLE3_RECIPES, deviations
from cmrepro.schema import convert, lookup, read_toml
from cmrepro.settings import Recipe

_TABLES = tomllib.loads(resources.files(__package__).joinpath("recipes.toml").read_text())
_RECIPES: dict[str, dict[str, Any]] = _TABLES["recipes"]
VARIANTS = {"paper": ("paper",), "released": ("released",), "both": ("paper", "released")}


def recipe_names() -> list[str]:
    """All recipes, in the order of recipes.toml."""
    return list(_RECIPES)


def load_recipe(name: str, variant: str = "paper") -> Recipe:
    """A recipe by name, or the only one of a .toml file, in the variant "paper" or "released".

    A file has a table [recipes.NAME] like those of recipes.toml, whose defaults hold for it too.
    """
    recipes, where = _RECIPES, ""
    if name.endswith(".toml"):
        file = read_toml(dict[str, dict[str, dict[str, Any]]], Path(name))
        recipes, where = file.get("recipes", {}), name
        if len(recipes) != 1:
            raise ValueError(f"{name} has {len(recipes)} tables [recipes.NAME], must have one")
        [name] = recipes
    values = {"name": name, "variant": variant, "stands_for": name, **_TABLES["defaults"]}
    values |= lookup("recipe", name, recipes)
    released = values.pop("released", {})
    return convert(Recipe, values | (released if variant == "released" else {}), where)


def recipe_list() -> list[dict[str, Any]]:
    """One row a recipe: its name and what tells it from the others."""
    fields = ("name", "method", "dataset", "batch_size", "total_steps")
    recipes = map(load_recipe, recipe_names())
    return [{field: getattr(recipe, field) for field in fields} for recipe in recipes]


def recipe_rows(name: str, variant: str = "paper") -> list[dict[str, str]]:
    """Rows of field, value, the other variant's value where it differs, and its deviation."""
    recipe = load_recipe(name, variant)
    other = load_recipe(name, "released" if variant == "paper" else "paper")
    explained = [d for d in deviations() if d.follow == "both" and name in d.recipes]
    ids = {field: d.id for d in explained for field in d.fields}
    rows = []
    for field, value in asdict(recipe).items():
        rows.append({"field": field, "value": _text(value)})
        if (differs := getattr(other, field)) != value and field != "variant":
            rows[-1] |= {f"in {other.variant}": _text(differs), "deviation": _text(ids.get(field))}
    return rows


def table3_rows(variant: str = "paper") -> list[dict[str, str]]:
    """Table 3 as the paper prints it; in the variant "both" cells may be "paper | released"."""
    variants = lookup("variant", variant, VARIANTS)
    rows = []
    for label, cell in TABLE3_ROWS.items():
        rows.append({"hyperparameter": label})
        for column, name in TABLE3_RECIPES.items():
            cells = [cell(load_recipe(name, v)) for v in variants]
            rows[-1][column] = " | ".join(dict.fromkeys(cells))
    return rows


def _text(value: object) -> str:
    return "" if value is None else str(value)


TABLE3_ROWS: dict[str, Callable[[Recipe], str]] = {
    "Learning rate": lambda r: f"{r.learning_rate:.0e}".replace("e-0", "e-"),
    "Batch size": lambda r: str(r.batch_size),
    "mu": lambda r: "" if r.target_ema is None else f"{r.target_ema:g}",
    "mu0": lambda r: _text(r.mu0),
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
