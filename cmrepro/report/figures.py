"""Figures of the report, each with the checksum of what it shows in its metadata."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from cmrepro.files import atomic_path
from cmrepro.records import RunRecord
from cmrepro.report.results import LABELS, group, summarise

CHECKSUM_KEY = "cmrepro-data"
PANELS = ("fid", "is", "precision", "recall")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by colour-blind readers too
MARKERS = ("o", "s", "^", "D")


def score_series(records: list[RunRecord]) -> dict[str, dict[str, list[list[float]]]]:
    """Label -> metric -> [evaluations, mean, half-width] a point, for multistep samplers."""
    series: dict[str, dict[str, list[list[float]]]] = {}
    for (model, nfe, _, num_images), members in group(records).items():
        if nfe is None or members[0].sampler["algorithm"] != "multistep":
            continue
        for metric in PANELS:
            summary = summarise([r.scores[metric] for r in members])
            point = [float(nfe), summary.mean, summary.half_width if summary.n > 1 else 0.0]
            label = f"{model}, {num_images:,} images"
            series.setdefault(label, {}).setdefault(metric, []).append(point)
    return series


def checksum(data: Any) -> str:
    """SHA-256 of data that JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def figure_checksum(path: Path) -> str | None:
    """The checksum that a figure carries, or None when it is missing or not ours."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get(CHECKSUM_KEY)
    except (OSError, UnidentifiedImageError):
        return None


def score_figure(series: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Score against network evaluations, one panel a metric, one line a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.1), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for ax, metric in zip(axes, PANELS, strict=True):
        for i, (label, scores) in enumerate(series.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            nfe, mean, half_width = zip(*scores[metric], strict=True)
            ax.errorbar(nfe, mean, half_width, color=colour, marker=marker, capsize=4, label=label)
        ax.set_title(f"{LABELS[metric]} ({'lower' if metric == 'fid' else 'higher'} is better)")
        ax.set_xlabel("network evaluations")
        ax.set_xticks(sorted({int(point[0]) for s in series.values() for point in s[metric]}))
        ax.margins(x=0.2)
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    buffer = io.BytesIO()
    metadata = {CHECKSUM_KEY: checksum(series), "Software": None}
    figure.savefig(buffer, format="png", dpi=130, metadata=metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
