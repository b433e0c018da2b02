"""Sampling on an accelerator: images per second, overhead, memory, by network and precision.

    python benchmarks/device.py --device cuda --out device.json

The bundled CD, and NCSN++ and ADM-64 at full size with random weights, in one step. `overhead` is
the time of `sample` over that of bare network calls on ready noise, minus 1; `noise_s` that of
making and hashing the same noise alone.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cmrepro.checkpoints.load import load_model
from cmrepro.consistency.parameterization import PreconditionedModel
from cmrepro.networks.presets import IMAGE_SIZES, build_network
from cmrepro.noise import noise_blocks
from cmrepro.provenance import provenance
from cmrepro.sampling import AUTOCAST, sample
from cmrepro.schema import to_builtins
from cmrepro.settings import SamplerSettings

NETWORKS = ("demo-cifar10-cd", "ncsnpp-cifar10", "adm-imagenet64")


def load(name: str, device: str) -> tuple[PreconditionedModel, int]:
    """A model and its image size."""
    if name not in IMAGE_SIZES:
        model = load_model(name, device)
        return model, model.image_size
    model = PreconditionedModel(build_network(name), "boundary").to(device).eval()
    return model.to(memory_format=torch.channels_last), IMAGE_SIZES[name]


def synchronized(device: str) -> float:
    """Time at which the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def measure(name: str, precision: str, num_images: int, device: str) -> dict[str, object]:
    """One row of results."""
    model, size = load(name, device)
    settings = SamplerSettings(algorithm="multistep", times=(80.0,), precision=precision)
    warm_up = sample(model, settings, 1, 0, size)
    batch_size = warm_up.provenances[0].sampling_batch_size
    sample(model, settings, batch_size, 0, size)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    start = synchronized(device)
    sample(model, settings, num_images, 0, size)
    sampling_s = synchronized(device) - start

    x = torch.randn(batch_size, 3, size, size, device=device) * 80
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    arguments = (x, 80.0, labels if model.num_classes else None)
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    start = synchronized(device)
    with torch.autocast(torch.device(device).type, AUTOCAST[precision], precision != "fp32"):
        for _ in range(0, num_images, batch_size):
            model(*arguments)
    bare_s = synchronized(device) - start

    start = time.perf_counter()
    firsts = range(0, num_images, batch_size)
    for _ in noise_blocks(
        0, [range(i, i + batch_size) for i in firsts], (1, 3, size, size), False
    ):
        pass
    noise_s = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    return {
        "network": name,
        "precision": precision,
        "num_images": num_images,
        "batch_size": batch_size,
        "images_per_s": num_images / sampling_s,
        "overhead": sampling_s / bare_s - 1,
        "noise_s": noise_s,
        "tflop_per_s": counter.get_total_flops() / batch_size * num_images / bare_s / 1e12,
        "memory_gb": peak and peak / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--precisions", nargs="+", default=list(AUTOCAST))
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        for precision in options.precisions:
            rows.append(measure(name, precision, options.num_images, options.device))
            print(json.dumps(rows[-1]), flush=True)
            result = {"rows": rows, "provenance": to_builtins(provenance())}
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
