"""Records of models of the paper's size, made up for tests."""

from typing import Any

from records_of import demo_record, sha256_of

from cmrepro.paper import AbsoluteClaim, claim
from cmrepro.records3 import RunRecord

SELECTION = {
    "text": "last checkpoint",
    "rule": "last checkpoint",
    "metric": None,
    "seeds": None,
    "images": None,
}


def paper_record(
    claimed: str, seed: int, score: float, *, changes: dict[str, Any] | None = None, **given: Any
) -> RunRecord:
    """A record that is comparable with an absolute claim in every field but those given.

    Args:
        claimed: Id of the claim, which gives recipe, steps, protocol, metric and scale.
        seed: Of the noise.
        score: Of the claim's metric.
        changes: Recipe fields that differ from the claim's; they make another checkpoint.
        given: Fields of `comparable` or of the record.
    """
    paper = claim(claimed)
    assert isinstance(paper, AbsoluteClaim)
    setting, changes = paper.setting, changes or {}
    method = paper.method.lower()
    base = demo_record(method, setting.nfe, seed, 1.0)
    comparable = {
        "scale": "paper",
        "network": paper.network,
        "dataset": paper.training_data,
        "images_seen": paper.images_seen,
        "global_batch": paper.batch_size,
        "initialisation": paper.initialisation,
        "weights": "ema",
        "training_steps": paper.total_steps,
        "selection": SELECTION,
        "protocol_version": paper.protocol_version,
    }
    recipe = {
        "name": setting.recipe,
        "distance": "lpips",
        "ema_rate": paper.ema_rate,
        "solver": {"cd": "heun"}.get(method),
        "num_scales": {"cd": 18}.get(method),
        "target_ema": {"cd": 0.0}.get(method),
        "learning_rate": 4e-4,
        **changes,
    }
    name = "-".join([setting.recipe, *map(str, changes.values())])
    fields = {
        "model": name,
        "num_images": paper.num_images,
        "protocol": {"name": setting.protocol, "version": paper.protocol_version},
        "scores": {setting.metric: score},
        "checkpoint": {"sha256": sha256_of(name), "recipe": recipe, "origin": {}},
        "comparable": comparable | {k: v for k, v in given.items() if k in comparable},
    }
    return RunRecord(
        **vars(base) | fields | {k: v for k, v in given.items() if k not in comparable}
    )
