"""A recipe: all that is needed to train one model, and Table 3 made from recipes."""

import dataclasses
import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args, get_type_hints

from cmrepro.paper import TABLE3_RECIPES, deviations
from cmrepro.schema import unknown

Variant = Literal["paper", "released"]
VARIANTS: tuple[Variant, ...] = ("paper", "released")

# Fields that a method does not have.
NOT_USED = {
    "edm": (
        "distance",
        "solver",
        "target_ema",
        "mu0",
        "num_scales",
        "s0",
        "s1",
        "schedule_steps",
        "two_step_index",
    ),
    "cd": (),
    "ct": ("solver",),
}


@dataclass(frozen=True)
class Recipe:
    """One model's training.

    Attributes:
        name: Its key in recipes.toml.
        variant: "paper", or "released" for what the official code does.
        method: "edm" (denoising, the teacher), "cd" (Algorithm 2) or "ct" (Algorithm 3).
        dataset: Name of the training images.
        network: Name of a network preset.
        initialisation: "random", or "teacher" for the teacher's weights.
        optimizer: "radam".
        learning_rate: Of the first step; constant unless one of the next two is given.
        inverse_sqrt_after: Images after which the rate falls as 1 / sqrt(images / this) (EDM2).
        linear_decay_share: Share of the steps, the last ones, over which the rate falls to 0.
        batch_size: Global batch, images.
        ema_rate: Decay a step of the weights that are sampled from.
        total_steps: Optimizer steps.
        dropout: Probability.
        horizontal_flip: Flip each image with probability 1/2.
        mixed_precision: Train in half precision.
        num_gpus: Devices the source used. The global batch does not depend on it; a device's share
            of it goes through the network at once, unless told otherwise.
        sigma_min: The paper's epsilon.
        sigma_max: The paper's T.
        rho: Exponent of the time grid.
        sigma_data: Standard deviation of the data.
        mu_form: Divisor of mu(k): "paper" or "released".
        distance: d of the consistency losses.
        solver: ODE solver of CD.
        target_ema: mu, when fixed.
        mu0: mu at the start, when it follows mu(k).
        num_scales: N, when fixed.
        s0: N at the start, when it follows N(k).
        s1: N - 1 at the end, when it follows N(k).
        schedule_steps: K of N(k), where training stops before or goes on after it.
        two_step_index: Index on the grid of the second sampling time, where published.

    Raises:
        ValueError: A value of another type or out of its range, or fields that exclude each other.
    """

    name: str
    variant: Variant
    method: Literal["edm", "cd", "ct"]
    dataset: str
    network: str
    initialisation: Literal["random", "teacher"]
    optimizer: str
    learning_rate: float
    batch_size: int
    ema_rate: float
    total_steps: int
    dropout: float
    horizontal_flip: bool
    mixed_precision: bool
    num_gpus: int
    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    mu_form: Variant
    distance: str | None = None
    solver: str | None = None
    target_ema: float | None = None
    mu0: float | None = None
    num_scales: int | None = None
    s0: int | None = None
    s1: int | None = None
    schedule_steps: int | None = None
    two_step_index: int | None = None
    inverse_sqrt_after: int | None = None
    linear_decay_share: float | None = None

    def __post_init__(self) -> None:
        for key, annotation in get_type_hints(Recipe).items():
            value = getattr(self, key)
            kinds = get_args(annotation) or (annotation,)  # types, or the values of a Literal
            kinds += (int,) if float in kinds else ()
            if value not in kinds and type(value) not in kinds:  # not isinstance: True is no int
                allowed = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in kinds)
                raise ValueError(f"got {key} = {value!r}; allowed is {allowed}")
        for key in ("batch_size", "total_steps", "inverse_sqrt_after"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"got {key} = {getattr(self, key)}; it must be at least 1")
        for key in ("ema_rate", "target_ema", "mu0", "dropout"):
            if not 0 <= (getattr(self, key) or 0) < 1:
                raise ValueError(f"got {key} = {getattr(self, key)}; it must be in [0, 1)")
        if not 0 < (self.linear_decay_share or 1) <= 1:
            raise ValueError(
                f"got linear_decay_share = {self.linear_decay_share}; it must be in (0, 1]"
            )
        for key in NOT_USED[self.method]:
            if getattr(self, key) is not None:
                raise ValueError(
                    f"got {key} = {getattr(self, key)} for recipe '{self.name}', which is trained "
                    f"by {self.method.upper()} and has none; leave it out"
                )
        if self.method == "edm":
            return
        if (self.num_scales is None, self.s0 is None, self.s1 is None) not in (
            (False, True, True),
            (True, False, False),
        ):
            raise ValueError(f"recipe '{self.name}' needs either num_scales or s0 and s1")
        if self.s0 is not None and self.s1 is not None and not 1 <= self.s0 <= self.s1 + 1:
            raise ValueError(f"got s0 = {self.s0}, s1 = {self.s1}; needed is 1 <= s0 <= s1 + 1")
        last = (self.num_scales or (self.s1 or 0) + 1) - 1
        if self.two_step_index is not None and not 0 < self.two_step_index < last:
            raise ValueError(
                f"got two_step_index = {self.two_step_index}; allowed is 1 to {last - 1}"
            )
        if (self.target_ema is None) == (self.mu0 is None):
            raise ValueError(f"recipe '{self.name}' needs either target_ema or mu0")
        if self.mu0 is not None and self.s0 is None:
            raise ValueError(f"recipe '{self.name}' has mu0, which needs s0 and s1")

    def replace(self, **changes: Any) -> "Recipe":
        """The same recipe with some fields changed.

        Raises:
            ValueError: A field does not exist or names the recipe, or as the constructor.
        """
        known = {field.name for field in dataclasses.fields(self)} - {"name", "variant", "method"}
        for key in changes:
            if key not in known:
                raise ValueError(unknown("recipe field", key, known))
        return dataclasses.replace(self, **changes)


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("recipes.toml").read_text())


def recipe_names() -> list[str]:
    """All recipes, in the order of recipes.toml."""
    return list(_tables()["recipes"])


def load_recipe(name: str, variant: Variant = "paper") -> Recipe:
    """The named recipe.

    Raises:
        ValueError: Unknown name or variant.
    """
    tables = _tables()
    if name not in tables["recipes"]:
        raise ValueError(unknown("recipe", name, tables["recipes"]))
    if variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, VARIANTS))
    fields = tables["defaults"] | tables["recipes"][name]
    released = fields.pop("released", {})
    if variant == "released":
        fields |= released
    return Recipe(name=name, variant=variant, **fields)


def recipe_rows(name: str, variant: Variant = "paper") -> list[dict[str, str]]:
    """Every field of a recipe with its value, and the deviation that made it differ.

    Returns:
        Rows of field, value, the other variant's value where it differs, and deviation id.

    Raises:
        ValueError: Unknown name or variant; a field differs and no deviation says why.
    """
    recipe = load_recipe(name, variant)
    other = load_recipe(name, "released" if variant == "paper" else "paper")
    rows = []
    for field in dataclasses.fields(Recipe):
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
    for deviation in deviations():
        if (
            deviation.follow == "both"
            and field in deviation.fields
            and recipe in deviation.recipes
        ):
            return deviation.id
    raise ValueError(
        f"recipe '{recipe}' differs in {field} and no entry of deviations.toml says why"
    )


def table3(variant: Variant = "paper") -> list[dict[str, str]]:
    """Table 3, 13 rows of a label and six cells, printed as the paper prints it."""
    recipes = {column: load_recipe(name, variant) for column, name in TABLE3_RECIPES.items()}
    return [
        {"hyperparameter": label} | {column: cell(r) for column, r in recipes.items()}
        for label, cell in TABLE3_ROWS.items()
    ]


def table3_rows(variant: str) -> list[dict[str, str]]:
    """Table 3 of a variant, or of "both": cells that differ then read "paper | released".

    Raises:
        ValueError: Unknown variant.
    """
    if variant == "both":
        return [
            {
                key: value if value == released[key] else f"{value} | {released[key]}"
                for key, value in row.items()
            }
            for row, released in zip(table3("paper"), table3("released"), strict=True)
        ]
    if variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, [*VARIANTS, "both"]))
    return table3(variant)


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
