"""Records of models of the paper's size, made up for tests."""

from typing import Any

from records_of import altered, demo_record, sha256_of

from cmrepro.metrics.protocols import load_protocol
from cmrepro.paper import AbsoluteClaim, claim
from cmrepro.records import RunRecord
from cmrepro.training.recipes import load_recipe


def paper_record(
    claimed: str, seed: int, score: float, changes: dict[str, Any] | None = None, **recipe: Any
) -> RunRecord:
    """A record that is comparable with an absolute claim but for the changes.

    Args:
        claimed: Id of the claim.
        seed: Seed of the noise.
        score: Value of the claim's metric.
        changes: Fields of the record by dotted keys.
        recipe: Recipe fields that differ from the claim's; they make another checkpoint.
    """
    paper = claim(claimed)
    assert isinstance(paper, AbsoluteClaim)
    setting, made = paper.setting, load_recipe(paper.setting.recipe).replace(**recipe)
    trained = ("scale", "stands_for", "dataset", "initialisation", "batch_size", "total_steps")
    trained += ("ema_rate", "distance")
    name = "-".join([setting.recipe, *map(str, recipe.values())])
    fields = {
        "model": name,
        "num_images": paper.num_images,
        "protocol": load_protocol(setting.protocol),
        "reference.dataset": made.dataset.removesuffix("-train"),
        "scores": {setting.metric: float(score)},
        "sampler.to_uint8": "truncate",
        "checkpoint.sha256": sha256_of(name),
        "checkpoint.network": made.network,
        "checkpoint.recipe": made,
        "checkpoint.training.images_seen": paper.images_seen,
        **{f"checkpoint.training.{key}": getattr(made, key) for key in trained},
    }
    method = paper.method.lower()
    return altered(demo_record(method, setting.nfe, seed, 1.0), fields | (changes or {}))
