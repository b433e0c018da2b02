"""Figures of the report, each with the checksum of what it shows in its metadata."""

import hashlib
import io
import json
import textwrap
from pathlib import Path
from typing import Any

from cmrepro.files import atomic_path
from cmrepro.records import RunRecord
from cmrepro.report.results import LABELS, group, summarise

CHECKSUM_KEY = "cmrepro-data"
PANELS = ("fid", "is", "precision", "recall")
LABEL_WIDTH = 40  # characters
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by colour-blind readers too
MARKERS = ("o", "s", "^", "D")


def score_series(records: list[RunRecord]) -> dict[str, dict[str, list[list[float]]]]:
    """Label -> metric -> [evaluations, mean, half-width] a point, for multistep samplers."""
    series: dict[str, dict[str, list[list[float]]]] = {}
    for (model, nfe, _, num_images), members in group(records).items():
        if nfe is None or members[0].sampler["algorithm"] != "multistep":
            continue
        for metric in PANELS:
            if metric not in members[0].scores:
                continue
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
            if metric not in scores:
                continue
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            nfe, mean, half_width = zip(*scores[metric], strict=True)
            ax.errorbar(nfe, mean, half_width, color=colour, marker=marker, capsize=4, label=label)
        ax.set_title(f"{LABELS[metric]} ({'lower' if metric == 'fid' else 'higher'} is better)")
        ax.set_xlabel("network evaluations")
        points = [point for s in series.values() for point in s.get(metric, [])]
        ax.set_xticks(sorted({int(point[0]) for point in points}))
        ax.margins(x=0.2)
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, path, series)


def waterfall_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """How a score moves from one protocol to another, one bar a change, one panel a metric.

    Args:
        rows: Of `explanation_rows`: `change`, `detail`, and METRIC and "METRIC moved" for each
            metric.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    metrics = [key for key in rows[0] if f"{key} moved" in rows[0]]
    details = [textwrap.fill(str(row["detail"]), LABEL_WIDTH) for row in rows]
    labels = [f"{row['change']}\n{detail}" for row, detail in zip(rows, details, strict=True)]
    labels.append("as it ends")
    height = 0.9 + 0.55 * len(labels)
    figure = Figure(figsize=(3.2 + 2.6 * len(metrics), height), layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        values = [row[metric] for row in rows]
        moved = [row[f"{metric} moved"] for row in rows[1:]]
        ax.barh([0, len(rows)], [values[0], values[-1]], color="#999999")
        ax.barh(
            range(1, len(rows)),
            moved,
            left=values[:-1],
            color=[COLOURS[0] if change < 0 else COLOURS[1] for change in moved],
        )
        for i, (value, change) in enumerate(zip(values[1:], moved, strict=True), 1):
            end = max(value, value - change)
            ax.annotate(f" {change:+.4g}", (end, i), va="center", fontsize=7)
        for i, value in ((0, values[0]), (len(rows), values[-1])):
            ax.annotate(f" {value:.5g}", (value, i), va="center", fontsize=7)
        ax.set_title(LABELS[metric])
        ax.use_sticky_edges = False  # room for the numbers beside the longest bar
        ax.margins(x=0.25)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=7)
    axes[0].invert_yaxis()
    _save(figure, path, rows)


def _save(figure: Any, path: Path, data: Any) -> None:
    """Write a figure as PNG with the checksum of what it shows."""
    buffer = io.BytesIO()
    metadata = {CHECKSUM_KEY: checksum(data), "Software": None}
    figure.savefig(buffer, format="png", dpi=130, metadata=metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
