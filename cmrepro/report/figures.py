"""What the report draws: scores, training curves, and the way from one protocol to another."""

import json
import math
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

from cmrepro.files import atomic_path
from cmrepro.records3 import RunRecord
from cmrepro.report.charts import LIGHT, Chart, Point, svg
from cmrepro.report.matching import is_ablation
from cmrepro.report.results import LABELS, anchors, group, summarise

PANELS = ("fid", "is", "precision", "recall")
CURVE_POINTS = 300  # of a training curve; a longer log is thinned
NORMAL_95 = 1.96  # standard errors from the middle of a normal interval of 95 % to its end
LABEL_WIDTH = 40  # characters


def figures(records: list[RunRecord], training: Path) -> dict[str, dict[str, str]]:
    """The figures as SVG: kind ("score", "fid_by_num_images", "training") -> name -> SVG.

    A kind for which nothing is there is empty.

    Args:
        records: Ours.
        training: Folder of the logs of training, *.jsonl.

    Raises:
        ValueError: A log cannot be read.
    """
    charts = {
        "score": score_charts(records),
        "fid_by_num_images": num_images_charts(records),
        "training": {
            path.stem: training_chart(path)
            for path in sorted(training.glob("*.jsonl"), key=lambda path: path.stem)
        },
    }
    return {
        kind: {re.sub(r"[^\w.-]+", "-", f"{kind}_{name}"): svg(c) for name, c in own.items()}
        for kind, own in charts.items()
    }


def _protocol(record: RunRecord) -> str:
    return f"{record.protocol['name']}-v{record.protocol['version']}"


def score_charts(records: list[RunRecord]) -> dict[str, Chart]:
    """Score against network evaluations, without ablations; a chart a protocol and metric."""
    lines: dict[tuple[str, str], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    context: dict[tuple[str, str], dict[str, RunRecord]] = defaultdict(dict)
    for members in group([r for r in records if not is_ablation(r)]).values():
        first = members[0]
        if first.nfe is None or first.sampler["algorithm"] != "multistep":
            continue
        for metric in PANELS:
            if metric in first.scores:
                summary = summarise([r.scores[metric] for r in members])
                point = Point(float(first.nfe), summary.mean, summary.half_width)
                label = f"{first.model}, {first.num_images:,} images"
                key = _protocol(first), metric
                lines[key][label].append(point)
                context[key] |= {r.id: r for r in anchors(first, records) if metric in r.scores}
    return {
        f"{protocol}_{metric}": Chart(
            f"{LABELS[metric]} ({_direction(metric, list(context[protocol, metric].values()))})",
            f"network evaluations (protocol {protocol})",
            own,
            x_ticks=sorted({p.x for line in own.values() for p in line}),
            levels=[(r.scores[metric], r.model) for r in context[protocol, metric].values()],
        )
        for (protocol, metric), own in lines.items()
    }


def _direction(metric: str, anchors: list[RunRecord]) -> str:
    """Which scores are better; none where the images of best FD are not the best.

    Args:
        metric: One of `PANELS`.
        anchors: Images that no network made, under one protocol, those of best FD first.
    """
    best = min if metric == "fid" else max
    if anchors and best(anchors, key=lambda r: r.scores[metric]) is not anchors[0]:
        return "no order of quality"
    return "lower is better" if metric == "fid" else "higher is better"


def num_images_charts(records: list[RunRecord]) -> dict[str, Chart]:
    """FID against the number of images, a chart for each protocol, of records that hold it.

    The interval is that of the mean over parts and seeds; of a single value, that of its standard
    error, which comes from the spread of the parts.
    """
    charts: dict[str, dict[str, list[Point]]] = defaultdict(dict)
    for members in group([r for r in records if "fid_by_num_images" in r.uncertainty]).values():
        first = members[0]
        values: dict[int, list[float]] = defaultdict(list)
        for record in members:
            for size, parts in record.uncertainty["fid_by_num_images"].items():
                values[int(size)] += parts
        points = []
        for size, own in sorted(values.items()):
            summary = summarise(own)
            half_width = summary.half_width
            if summary.n == 1:
                half_width = NORMAL_95 * first.uncertainty["fid_infinity"]["standard_error"]
            points.append(Point(size, summary.mean, half_width))
        evaluations = "" if first.nfe is None else f", NFE {first.nfe}"
        charts[_protocol(first)][first.model + evaluations] = points
    return {
        protocol: Chart(
            f"{LABELS['fid']} ({protocol})",
            "images (logarithmic)",
            lines,
            log_x=True,
            log_y=all(end > 0 for line in lines.values() for p in line for end in p.ends),
            x_ticks=sorted({p.x for line in lines.values() for p in line})[-4:],
        )
        for protocol, lines in charts.items()
    }


def training_chart(path: Path) -> Chart:
    """Loss against images seen; a mark where the number of time points N changes.

    Raises:
        ValueError: Not a log of training.
    """
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = [Point(float(e["images"]), float(e["loss"])) for e in entries]
        if not points or not all(math.isfinite(p.y) for p in points):
            raise ValueError("no entries, or a loss that is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a log of training ({error}); remove it or copy log.jsonl again"
        ) from error
    scales = [entry.get("num_scales") for entry in entries]
    changes = [i for i, n in enumerate(scales) if n and (i == 0 or n != scales[i - 1])]
    every = math.ceil(len(points) / CURVE_POINTS)
    return Chart(
        f"{path.stem}: loss",
        "images seen" + ("; a dashed line where N changes" if changes else ""),
        {path.stem: points[::every]},
        log_y=min(p.y for p in points) > 0,
        marks=[(points[i].x, str(scales[i])) for i in changes],
        mark_name="N" if changes else "",
    )


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
            color=[LIGHT[0] if change < 0 else LIGHT[1] for change in moved],
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
