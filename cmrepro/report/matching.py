"""Which records measure a setting of a claim: by what the recipe in their checkpoint says."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from cmrepro.paper import ABLATED, Setting, ablated_fields
from cmrepro.records3 import RunRecord
from cmrepro.report.results import is_demo, recipe_of

SECOND_TIME = "; second time"  # begins what a checkpoint's selection says of its second time
SEEDS = re.compile(r"\bseeds? (\d+(?:(?:, | and | to )\d+)*)")

Condition = tuple[str, int, int, str]  # protocol, its version, images scored, reference's checksum


@dataclass(frozen=True)
class Side:
    """One model at one number of evaluations under one protocol.

    Attributes:
        records: One a seed, in the order of the seeds; at least one.
        chosen_on: Seeds among them on which the checkpoint, or the times that they were sampled
            at, were chosen: their scores flatter the model and do not count.
    """

    records: Mapping[int, RunRecord]
    chosen_on: frozenset[int]

    @property
    def first(self) -> RunRecord:
        """The record of the first seed; all agree but in seed and scores."""
        return next(iter(self.records.values()))

    @property
    def condition(self) -> Condition:
        """How the model was scored."""
        record = self.first
        name, version = record.protocol["name"], record.protocol["version"]
        return name, version, record.num_images, record.reference["sha256"]

    @property
    def remark(self) -> str:
        """Which seeds do not count, "" where all do."""
        seeds = ", ".join(str(seed) for seed in sorted(self.chosen_on))
        return f"without seed {seeds}, on which checkpoint or time was chosen" if seeds else ""

    def scores(self, metric: str) -> dict[int, float]:
        """Score by seed of those that count."""
        return {
            seed: record.scores[metric]
            for seed, record in self.records.items()
            if seed not in self.chosen_on
        }


def trained_recipe(record: RunRecord) -> str:
    """The recipe of Table 3 that a model stands for, "" where unknown; its fields may be changed.

    Released checkpoints that are in none of the tables say only method and data.
    """
    origin = record.checkpoint.get("origin", {})
    if recipe_of(record) or not (origin.get("method") and origin.get("dataset")):
        return recipe_of(record)
    return f"{origin['dataset'].removesuffix('-train')}-{origin['method']}"


def recipe_fields(record: RunRecord) -> Mapping[str, str | int | float | None] | None:
    """What a model's recipe has in the fields of `ABLATED`; None where unknown.

    Released checkpoints hold no recipe; theirs is the paper's but for the published distance.
    """
    if recipe := record.checkpoint.get("recipe"):
        return {name: recipe.get(name) for name in ABLATED}
    fields = ablated_fields(trained_recipe(record))
    if fields is None:
        return None
    return {**fields, "distance": record.checkpoint["origin"].get("distance")}


def stands_for(record: RunRecord, setting: Setting, demo: bool) -> bool:
    """Whether a model, of the demo or not, is that of a setting: recipe and changes, no others."""
    return (
        is_demo(record) == demo
        and trained_recipe(record) == setting.recipe
        and recipe_fields(record) == ablated_fields(setting.recipe, setting.changes, demo)
    )


def is_ablation(record: RunRecord) -> bool:
    """Whether a demo model was trained with a field of `ABLATED` set otherwise than the demo's."""
    fields = ablated_fields(recipe_of(record), demo=True) if is_demo(record) else None
    return fields is not None and recipe_fields(record) != fields


def sides(records: list[RunRecord], steps: int, metric: str) -> list[Side]:
    """Records with that number of evaluations and that score, by model and way of scoring.

    The order is that of models' names and does not depend on scores.
    """
    found: dict[tuple[object, ...], dict[int, RunRecord]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: (r.model, r.seed or 0)):
        if record.nfe != steps or record.seed is None or metric not in record.scores:
            continue
        key = (
            record.checkpoint["sha256"],
            tuple(record.sampler["times"]),
            record.protocol["name"],
            record.protocol["version"],
            record.num_images,
            record.reference["sha256"],
        )
        found[key][record.seed] = record
    return [
        Side(members, chosen_on(next(iter(members.values()))) & members.keys())
        for members in found.values()
    ]


def chosen_on(record: RunRecord) -> frozenset[int]:
    """Seeds on which a record's checkpoint, or the second of its times, was chosen."""
    selection = record.comparable["selection"] or {"text": "", "seeds": None}
    checkpoint, _, time = selection["text"].partition(SECOND_TIME)
    text, seeds = checkpoint, set()
    if record.nfe != 1 or not time:  # one step has no second time
        text, seeds = selection["text"], set(selection["seeds"] or ())
    for listed in SEEDS.findall(text):
        for part in re.split(", | and ", listed):
            first, _, last = part.partition(" to ")
            seeds |= set(range(int(first), int(last or first) + 1))
    return frozenset(seeds)
