"""Records made up for tests."""

import hashlib
from typing import Any

from cmrepro.metrics.protocols import load_protocol
from cmrepro.records import RunRecord
from cmrepro.schema import convert, to_builtins
from cmrepro.training.recipes import load_recipe

PROVENANCE: dict[str, Any] = {
    "command": "cmrepro reproduce cifar10",
    "cmrepro": "0.1.0",
    "commit": "0" * 40,
    "dirty": False,
    "python": "3.11.7",
    "packages": {"torch": "2.15.0"},
    "platform": "Linux x86_64",
    "cpu": "some CPU",
    "threads": 1,
    "gpu": None,
}


def sha256_of(text: str) -> str:
    """A checksum to tell made-up things apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def demo_recipe(method: str) -> dict[str, Any]:
    """Fields of the recipe of a demo model, "cd", "ct", "pd" or "edm", made small and alike."""
    recipe = to_builtins(load_recipe(f"demo-cifar10-{method}"))
    recipe |= {"network": "patch-unet", "initialisation": "teacher", "learning_rate": 4e-4}
    recipe |= {"batch_size": 32, "ema_rate": 0.998, "total_steps": 10}
    return recipe | ({"s0": 2, "s1": 10} if method in ("cd", "ct") else {})


def demo_checkpoint(method: str) -> dict[str, Any]:
    """Fields of the checkpoint of a demo model."""
    recipe = demo_recipe(method)
    shared = ("method", "scale", "stands_for", "dataset", "initialisation", "ema_rate")
    return {
        "file": f"demo-cifar10-{method}.safetensors",
        "sha256": sha256_of(method),
        "network": "patch-unet",
        "parameterization": "boundary" if method in ("cd", "ct") else "edm",
        "sigma_data": 0.5,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "recipe": recipe,
        "training": {
            **{key: recipe[key] for key in (*shared, "batch_size", "total_steps")},
            "distance": recipe.get("distance"),
            "weights": "ema",
            "images_seen": 320,
            "seed": 0,
            "duration_s": 36.0,
            "provenance": PROVENANCE | {"command": f"cmrepro train demo-cifar10-{method}"},
        },
        "two_step_time": 0.8 if method in ("cd", "ct") else None,
    }


def demo_record(
    method: str, nfe: int | None, seed: int | None, fid: float, **changes: Any
) -> RunRecord:
    """A record like those of `cmrepro reproduce cifar10`, with a given FID.

    Args:
        method: "cd", "ct", "pd" (of as many steps as evaluations) or "edm".
        nfe: Network evaluations; None for images from elsewhere, which have no checkpoint.
        seed: Seed of the noise.
        fid: The score.
        changes: Fields of the record, in the place of those made up here.
    """
    sampled: dict[str, Any] = {
        "sampler": {"algorithm": "multistep", "times": [80.0, 0.8][:nfe]},
        "checkpoint": demo_checkpoint(method),
        "num_sampled": 2000,
        "sampling_device": "cpu",
    }
    if method == "edm":
        sampled["sampler"] = {"algorithm": "heun", "times": [80.0 / 2**i for i in range(18)]}
    if method == "pd":
        sampled["checkpoint"]["recipe"]["num_scales"] = nfe
        sampled["sampler"] = {"algorithm": "euler", "times": [*[80.0, 0.8][:nfe], 0.002]}
    fields: dict[str, Any] = {
        "model": f"demo-cifar10-{method}",
        "nfe": nfe,
        "seed": seed,
        "num_images": 2000,
        "protocol": to_builtins(load_protocol("embedded")),
        "reference": {
            "name": "cifar10-jpeg-train",
            "dataset": "cifar10-jpeg",
            "split": "train",
            "sha256": sha256_of("reference"),
        },
        "scores": {"fid": fid, "is": 3.0, "kid": 0.5, "precision": 0.4, "recall": 0.2},
        "hashes": {
            "noise": sha256_of(f"noise {nfe} {seed}"),
            "images": sha256_of(f"images {method} {nfe} {seed}"),
            "features": sha256_of(f"features {method} {nfe} {seed}"),
        },
        "provenance": PROVENANCE,
        "device": "cpu",
        "durations_s": {"sampling_all_steps": 10.0, "scoring": 5.0},
    }
    if nfe is not None:
        fields |= sampled
    return convert(RunRecord, fields | to_builtins(changes), "")


def altered(record: RunRecord, changes: dict[str, Any]) -> RunRecord:
    """A record with changed fields, named by dotted keys such as "sampler.to_uint8"."""
    return convert(RunRecord, altered_fields(record, changes), "")


def altered_fields(record: RunRecord, changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of `altered`, valid or not."""
    fields: dict[str, Any] = to_builtins(record)
    for key, value in changes.items():
        *parents, name = key.split(".")
        inner = fields
        for parent in parents:
            inner = inner[parent]
        inner[name] = to_builtins(value)
    return fields
