"""Like with like: what must agree before two scores may be set side by side.

A claim of the paper and a record of ours are each brought to the same fields
(`fields_of`), and one comparison says which differ and which are not known.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from cmrepro.paper import ABLATED, AbsoluteClaim, ablated_fields
from cmrepro.records3 import RunRecord
from cmrepro.report.matching import SECOND_TIME, recipe_fields, trained_recipe
from cmrepro.report.results import is_demo

Value = str | int | float | None
Scored = AbsoluteClaim | RunRecord

HOW_SCORED = (
    "training data",
    "evaluations",
    "protocol",
    "protocol version",
    "images scored",
    "network",
)
# Two methods that are compared may differ in these, as CD and CT do.
HOW_TRAINED = (
    "recipe",
    "images seen",
    "global batch",
    "training steps",
    "initialisation",
    "weights",
    "selection",
    *ABLATED,
)
# Words that stand for "not known": of the paper, of released files, of foreign checkpoints.
UNKNOWN = (None, "", "not stated", "not known", "as released")


@dataclass(frozen=True)
class Likeness:
    """How two scores compare, field by field.

    Attributes:
        different: By field that differs: its name and both values.
        unknown: By field that a side does not say: its name and which side.
    """

    different: Mapping[str, str]
    unknown: Mapping[str, str]

    def __str__(self) -> str:
        """Both in one line, "" where all fields are known and agree."""
        unknown = f"not known: {', '.join(self.unknown.values())}" if self.unknown else ""
        return "; ".join(filter(None, [*self.different.values(), unknown]))


def like_with_like(
    there: Scored,
    here: Scored,
    leave_out: Container[str] = (),
    names: tuple[str, str] = ("there", "here"),
) -> Likeness:
    """Compare two scores in every field that has to agree before they are set side by side.

    Args:
        there: A claim or a record.
        here: Another.
        leave_out: Fields that may differ, since the comparison is about them.
        names: What to call the two.
    """
    one, two = fields_of(there), fields_of(here)
    different, unknown = {}, {}
    for field in (*HOW_SCORED, *HOW_TRAINED):
        if field in leave_out:
            continue
        values = (one[field], two[field])
        silent = [name for name, value in zip(names, values, strict=True) if value in UNKNOWN]
        if silent:
            unknown[field] = f"{field} ({' and '.join(silent)})"
        elif values[0] != values[1]:
            different[field] = f"{field} {differing(values, names)}"
    return Likeness(different, unknown)


def differing(values: tuple[object, object], names: tuple[str, str]) -> str:
    """Two values in words: "1,000 there, 20 here"."""
    texts = [
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else value
        for value in values
    ]
    return ", ".join(f"{text} {name}" for text, name in zip(texts, names, strict=True))


def fields_of(scored: Scored) -> Mapping[str, Value]:
    """The fields that make a score comparable, None where not known; the same of all kinds."""
    known = _of_claim(scored) if isinstance(scored, AbsoluteClaim) else _of_record(scored)
    return dict.fromkeys((*HOW_SCORED, *HOW_TRAINED)) | known


def _of_claim(claim: AbsoluteClaim) -> dict[str, Value]:
    setting = claim.setting
    return {
        "training data": claim.training_data,
        "evaluations": setting.nfe,
        "protocol": setting.protocol,
        "protocol version": claim.protocol_version,
        "images scored": claim.num_images,
        "network": claim.network,
        "recipe": setting.recipe,
        "images seen": claim.images_seen,
        "global batch": claim.batch_size,
        "training steps": claim.total_steps,
        "initialisation": claim.initialisation,
        "weights": f"EMA {claim.ema_rate:.6g}",
        "selection": claim.selection,
        **_said(ablated_fields(setting.recipe, setting.changes)),
    }


def _of_record(record: RunRecord) -> dict[str, Value]:
    comparable = record.comparable
    protocol, reference = record.protocol, record.reference["name"]
    foreign = protocol.get("reference") not in (None, reference)  # another than the protocol's own
    recipe = trained_recipe(record)
    rule = (comparable["selection"] or {}).get("rule")
    return {
        "training data": comparable["dataset"],
        "evaluations": record.nfe,
        "protocol": f"{protocol['name']} against {reference}" if foreign else protocol["name"],
        "protocol version": protocol["version"],
        "images scored": record.num_images,
        "network": comparable["network"],
        "recipe": f"demo-{recipe}" if is_demo(record) else recipe,
        "images seen": comparable["images_seen"],
        "global batch": comparable["global_batch"],
        "training steps": comparable["training_steps"],
        "initialisation": comparable["initialisation"],
        "weights": _weights(record),
        "selection": rule and rule.partition(SECOND_TIME)[0],
        **_said(recipe_fields(record)),
    }


def _weights(record: RunRecord) -> str | None:
    """Which average of the weights is sampled; Table 3 prints rates to six digits."""
    weights: str | None = record.comparable["weights"]
    if weights != "ema":
        return weights
    trained = record.checkpoint.get("recipe") or record.checkpoint.get("origin") or {}
    rate = trained.get("ema_rate")
    return None if rate is None else f"EMA {rate:.6g}"


def _said(fields: Mapping[str, Value] | None) -> Mapping[str, Value]:
    """Recipe fields as text: one without a value is not unknown."""
    scheduled = ("num_scales", "target_ema")
    return {
        name: value if value is not None else "by a schedule" if name in scheduled else "none"
        for name, value in (fields or {}).items()
    }
