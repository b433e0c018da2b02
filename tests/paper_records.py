"""Records of models of the paper's size, made up for tests."""

from typing import Any

from official_files import official_step
from records_of import altered, demo_record, sha256_of

from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import default_reference, registered_references
from cmrepro.paper import AbsoluteClaim, claim
from cmrepro.records import Checkpoint, RunRecord
from cmrepro.sampling import sampler_settings
from cmrepro.schema import convert
from cmrepro.settings import ReferenceMetadata
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


def released_records(
    name: str, steps: int, scores: dict[str, float], seeds: int = 3, **changes: Any
) -> list[RunRecord]:
    """Records that the official file of a checkpoint gives under the paper's protocol.

    Args:
        name: Name of the checkpoint.
        steps: As for `cmrepro sample`; an unpublished second time was searched.
        scores: Means over seeds, whose values spread by 0.2 % of the mean.
        seeds: Number of seeds.
        changes: Fields of the records.
    """
    entry = released_checkpoints()[name]
    file = {key: getattr(entry, key) for key in ("name", "url", "licence", "format")}
    file |= {"file": entry.downloaded.name, "sha256": sha256_of(f"{name} released")}
    header = entry.info_fields | {
        "converted": file | {"conversion": 2, "step": official_step(entry)}
    }
    header |= {"selection": {"rule": "as released"}, "file": f"{name}.safetensors"}
    if steps == 2 and entry.two_step_time is None:
        searched = {
            "rule": "least fid of 9",
            "metric": "fid",
            "search": "ternary",
            "seeds": [1000],
        }
        header |= {"two_step_time": 0.8, "two_step_selection": searched}
    checkpoint = convert(Checkpoint, header | {"sha256": sha256_of(name)}, "")
    protocol = load_protocol("cm-cifar10" if entry.network == "ncsnpp-cifar10" else "adm")
    reference = registered_references()[default_reference(protocol, entry.training.dataset)]
    documented = {key: getattr(reference, key) for key in ReferenceMetadata.__struct_fields__}
    sampler = sampler_settings(checkpoint, steps, protocol.to_uint8)
    fields = {"model": name, "checkpoint": checkpoint, "protocol": protocol, "sampler": sampler}
    fields |= {"nfe": sampler.nfe, "num_images": 50_000, "num_sampled": 50_000}
    fields |= {
        "reference": documented | {"name": reference.name, "sha256": sha256_of(reference.name)}
    }
    return [
        altered(
            demo_record("cd", 1, seed, 1.0),
            fields
            | {"hashes.noise": sha256_of(f"{protocol.name} {steps} {seed}")}
            | {"scores": {key: x * (1 + 0.002 * (seed - 1)) for key, x in scores.items()}}
            | changes,
        )
        for seed in range(seeds)
    ]
