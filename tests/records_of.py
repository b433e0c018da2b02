"""Records made up for tests."""

import hashlib
from typing import Any

from cmrepro.records3 import RunRecord


def sha256_of(text: str) -> str:
    """A checksum to tell made-up things apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def demo_record(
    method: str, nfe: int | None, seed: int | None, fid: float, **changes: Any
) -> RunRecord:
    """A record as `cmrepro reproduce cifar10` makes it, with the given score."""
    fields: dict[str, Any] = {
        "model": f"demo-cifar10-{method}",
        "nfe": nfe,
        "seed": seed,
        "num_images": 2000,
        "protocol": {"name": "embedded", "version": 1},
        "reference": {"name": "cifar10-jpeg-train", "sha256": sha256_of("reference")},
        "scores": {"fid": fid, "is": 3.0, "kid": 0.5, "precision": 0.4, "recall": 0.2},
        "uncertainty": {},
        "warnings": [],
        "checkpoint": {
            "file": f"demo-cifar10-{method}.safetensors",
            "sha256": sha256_of(method),
            "network": "demo",
            "recipe": {
                "name": f"demo-cifar10-{method}",
                "method": method,
                "num_scales": None,
                "s0": 2,
                "s1": 10,
                "schedule_steps": None,
                "total_steps": 10,
                "distance": {"cd": "l2", "ct": "efficientnet"}.get(method),
                "solver": {"cd": "heun"}.get(method),
                "target_ema": {"cd": 0.0}.get(method),
                "mu0": {"ct": 0.9}.get(method),
                "batch_size": 32,
                "learning_rate": 4e-4,
            },
            "origin": {
                "steps": 10,
                "images_seen": 320,
                "duration_s": 36.0,
                "data": "cifar10-jpeg-train",
                "cpu": "some CPU",
                "threads": 1,
                "weights": "ema",
            },
        },
        "sampler": {
            "algorithm": "multistep",
            "times": [80.0, 0.8][:nfe],
            "to_uint8": "round",
            "clip_denoised": True,
            "nfe": nfe or 1,
            "num_images": 2000,
            "device": "cpu",
        },
        "comparable": {
            "scale": "demo",
            "network": "demo",
            "dataset": "cifar10-jpeg-train",
            "images_seen": 320,
            "global_batch": 32,
            "initialisation": "teacher",
            "weights": "ema",
            "training_steps": 10,
            "selection": {
                "text": "last checkpoint",
                "rule": "last checkpoint",
                "metric": None,
                "seeds": None,
                "images": None,
            },
            "protocol_version": 1,
        },
        "hashes": {
            "noise": sha256_of(f"noise {nfe} {seed}"),
            "images": sha256_of(f"images {method} {nfe} {seed}"),
            "features": sha256_of(f"features {method} {nfe} {seed}"),
        },
        "provenance": {
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
            "device": "cpu",
        },
        "durations_s": {"sampling_all_steps": 10.0, "scoring": 5.0},
    }
    return RunRecord(**(fields | changes))
