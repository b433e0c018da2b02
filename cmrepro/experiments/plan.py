"""The plan of a suite: downloads, disk, hours by a measured speed; nothing is downloaded."""

import time
from typing import Any

import torch

from cmrepro.checkpoints.io import bundled_checkpoints, read_info
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.experiments.reproduce import Suite
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import default_reference, registered_references
from cmrepro.networks.presets import IMAGE_SIZES, build_network

LARGEST_BATCH_SIZE = 256  # of a measurement


def plan(suite: Suite, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of a model, GB to download and on disk, network evaluations per second, hours."""
    rows: list[dict[str, Any]] = []
    speeds: dict[str, float] = {}
    protocol, needed = load_protocol(suite.protocol), set[str]()
    for name, steps in suite.checkpoints.items():
        entry = released_checkpoints().get(name)
        info = entry or read_info(bundled_checkpoints()[name])
        network, size = build_network(info.network), IMAGE_SIZES[info.network]
        if info.network not in speeds:
            model = PreconditionedModel(network, info.parameterization, 0.5, info.sigma_min).eval()
            speeds[info.network] = evaluations_per_s(model.to(device), size, device)
        nfe, stages = (2 * steps - 1, 1) if info.parameterization == "edm" else (steps, steps)
        count, official = suite.num_images * suite.seeds, entry.bytes_approx if entry else 0
        converted = sum(4 * weight.numel() for weight in network.parameters()) if entry else 0
        absent = entry is not None and entry.state == "not downloaded"
        rows.append(
            {
                "name": name,
                "download_gb": official * absent / 1e9,
                "disk_gb": (official + converted + stages * count * 3 * size**2) / 1e9,
                "evaluations_per_s": speeds[info.network],
                "sampling_h": count * nfe / speeds[info.network] / 3600,
            }
        )
        needed.add(default_reference(protocol, info.training.dataset if info.training else None))
    for reference in map(registered_references().get, needed):
        if reference and reference.bytes_approx and not reference.path.is_file():
            size_gb = reference.bytes_approx / 1e9
            rows.append({"name": reference.name, "download_gb": size_gb, "disk_gb": size_gb})
    keys = ("download_gb", "disk_gb", "sampling_h")
    return [*rows, {"name": "all"} | {k: sum(row.get(k, 0) for row in rows) for k in keys}]


@torch.inference_mode()
def evaluations_per_s(model: PreconditionedModel, image_size: int, device: str) -> float:
    """Network evaluations per second, in batches that grow until one takes a second."""
    model = model.to(memory_format=torch.channels_last)  # as `load_model` does
    count, duration_s = 1, 0.0
    while duration_s < 1 and count < LARGEST_BATCH_SIZE:
        count *= 1 if duration_s == 0 else 2  # the first batch is a warm-up
        x_t = torch.zeros(count, 3, image_size, image_size, device=device)
        classes = torch.zeros(count, dtype=torch.int64, device=device)
        start = time.perf_counter()
        model(x_t, 1.0, classes if model.num_classes else None).cpu()
        duration_s = time.perf_counter() - start
    return count / duration_s
