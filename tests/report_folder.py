"""A results folder as `cmrepro reproduce` and training leave it, made up and small."""

import json
from pathlib import Path

import numpy as np
from records_of import demo_record

from cmrepro.data.grids import write_grid
from cmrepro.records import RunRecord, write_record

SCORES = {1: (100.0, 102.0), 2: (90.0, 92.0)}  # of seeds 0 and 1 by evaluations


def made_up_records() -> list[RunRecord]:
    uncertainty = {"intervals": {"fid": [86.08, 93.92], "is": [2.5, 3.5]}}
    return [
        demo_record(
            "cd", nfe, seed, fid, uncertainty=uncertainty if (nfe, seed) == (2, 0) else None
        )
        for nfe, scores in SCORES.items()
        for seed, fid in enumerate(scores)
    ]


def make_results(out: Path) -> None:
    for record in made_up_records():
        write_record(record, out / "results" / "records")
    for nfe in SCORES:
        noise = np.random.default_rng(nfe).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
        write_grid(out / "results" / "samples" / f"demo-cifar10-cd_nfe{nfe}.png", noise)
    log = out / "results" / "training" / "demo-cifar10-cd.jsonl"
    log.parent.mkdir()
    entries = [{"step": k, "images": 32 * k, "loss": 1 / k, "num_scales": k} for k in (1, 2, 4)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
