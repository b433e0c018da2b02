"""Records of models of the paper's size, made up for tests."""

from typing import Any

from records_of import altered, demo_record, sha256_of

from cmrepro.metrics.protocols import load_protocol
from cmrepro.paper import AbsoluteClaim, claim
from cmrepro.records import RunRecord


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
    setting, method = paper.setting, paper.method.lower()
    trained = {
        "scale": "paper",
        "stands_for": setting.recipe,
        "dataset": paper.training_data,
        "initialisation": paper.initialisation,
        "batch_size": paper.batch_size,
        "total_steps": paper.total_steps,
        "ema_rate": paper.ema_rate,
        "distance": "lpips",
    }
    fixed = {"cd": {"num_scales": 18, "s0": None, "s1": None}, "ct": {}}[method]
    both = {**trained, **fixed, "name": setting.recipe, "network": paper.network} | recipe
    name = "-".join([setting.recipe, *map(str, recipe.values())])
    fields = {
        "model": name,
        "num_images": paper.num_images,
        "protocol": load_protocol(setting.protocol),
        "reference.dataset": paper.training_data.removesuffix("-train"),
        "scores": {setting.metric: float(score)},
        "sampler.to_uint8": "truncate",
        "checkpoint.sha256": sha256_of(name),
        "checkpoint.network": paper.network,
        "checkpoint.training.images_seen": paper.images_seen,
        **{f"checkpoint.recipe.{key}": value for key, value in both.items()},
        **{f"checkpoint.training.{key}": both[key] for key in trained},
    }
    return altered(demo_record(method, setting.nfe, seed, 1.0), fields | (changes or {}))
