"""Figures as SVG: scores, training curves, and the way from one protocol to another.

Fixed ids and no date, so that one version of matplotlib writes the same bytes everywhere.
"""

import io
import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmrepro.files import atomic_path
from cmrepro.records import RunRecord
from cmrepro.report.comparability import group, is_ablation
from cmrepro.report.results import PAPER_METRICS, anchors, protocol_of
from cmrepro.report.statistics import summarise
from cmrepro.report.tables import LABELS
from cmrepro.settings import Metric

# Colours that colour-blind readers tell apart (Okabe, Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8c6d00", "#56B4E9")
STYLE: Any = {
    "svg.hashsalt": "cmrepro",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": cycler(color=COLOURS),
}
CURVE_POINTS = 300  # of a training curve; a longer log is thinned
NORMAL_95 = 1.96  # standard errors from the middle of a normal interval of 95 % to its end
LABEL_WIDTH = 40  # characters
LEAST_SHARE = 0.1  # of the vertical axis, which anchors leave to the lines


def figures(records: Sequence[RunRecord], training: Path) -> dict[str, dict[str, str]]:
    """SVG by kind ("score", "fid_by_num_images", "training") and file name without ending.

    Args:
        records: Ours.
        training: Folder of the logs of training, *.jsonl.

    Raises:
        ValueError: A log cannot be read.
    """
    by_protocol: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_protocol[protocol_of(record)].append(record)
    kinds: dict[str, Callable[[Sequence[RunRecord]], Figure | None]] = {
        "score": score_figure,
        "fid_by_num_images": num_images_figure,
    }
    with matplotlib.rc_context(STYLE):
        drawn = {
            kind: {name: figure for name, of in by_protocol.items() if (figure := draw(of))}
            for kind, draw in kinds.items()
        }
        logs = sorted(training.glob("*.jsonl"), key=lambda path: path.stem)
        drawn["training"] = {path.stem: training_figure(path) for path in logs}
        return {
            kind: {re.sub(r"[^\w.]+", "-", f"{kind}_{name}"): _svg(f) for name, f in own.items()}
            for kind, own in drawn.items()
        }


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def score_figure(records: Sequence[RunRecord]) -> Figure | None:
    """Scores against NFE under one protocol, without ablations; None without multistep sampling.

    Dashed lines are images from elsewhere, which say what the scale means.
    """
    groups = [
        members
        for members in group(r for r in records if not is_ablation(r))
        if members[0].sampler and members[0].sampler.algorithm == "multistep"
    ]
    shown = [m for m in PAPER_METRICS if any(m in members[0].scores for members in groups)]
    if not shown:
        return None
    figure = Figure(figsize=(8, 3 * math.ceil(len(shown) / 2)), layout="constrained")
    for i, metric in enumerate(shown, 1):
        ax = figure.add_subplot(math.ceil(len(shown) / 2), 2, i)
        lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        context: dict[str, RunRecord] = {}
        for members in (g for g in groups if metric in g[0].scores):
            first = members[0]
            mean = summarise([r.scores[metric] for r in members])
            label = f"{first.model}, {first.num_images:,} images"
            lines[label].append((first.nfe or 0, mean.mean, mean.half_width))
            context |= {r.model: r for r in anchors(first, records) if metric in r.scores}
        _draw_lines(ax, lines)
        _draw_anchors(ax, {name: r.scores[metric] for name, r in context.items()})
        ax.set_xticks(sorted({x for line in lines.values() for x, _, _ in line}))
        ax.set_title(f"{LABELS[metric]} ({_direction(metric, list(context.values()))})")
        ax.set_xlabel(f"network evaluations ({protocol_of(records[0])})")
        ax.legend(fontsize=6)
    return figure


def _draw_lines(ax: Axes, lines: dict[str, list[tuple[float, float, float]]]) -> None:
    """Lines of (x, y, half interval or NaN) with error bars."""
    for (label, line), marker in zip(lines.items(), "osD^v" * len(lines), strict=False):
        xs, ys, spreads = zip(*line, strict=True)
        bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
        ax.errorbar(xs, ys, bars, marker=marker, markersize=4, capsize=2, label=label)


def _draw_anchors(ax: Axes, levels: dict[str, float]) -> None:
    """Dashed levels, or only names in the legend where they would leave the lines no room."""
    low, high = ax.get_ylim()
    ends = [low, high, *levels.values()]
    fits = high - low >= LEAST_SHARE * (max(ends) - min(ends))
    for name, value in levels.items():
        if fits:
            ax.axhline(value, color="black", linestyle="--", linewidth=0.8, alpha=0.6)
        ax.plot([], [], "k--", label=f"{'' if fits else 'not drawn: '}{name} {value:.4g}")


def _direction(metric: Metric, context: Sequence[RunRecord]) -> str:
    """Better direction; under some protocols none, as real images are not the best.

    Args:
        metric: One of `PAPER_METRICS`.
        context: `anchors`, the best FD first.
    """
    best = min if metric == "fid" else max
    if context and best(context, key=lambda r: r.scores[metric]) is not context[0]:
        return "no order of quality"
    return "lower is better" if metric == "fid" else "higher is better"


def num_images_figure(records: Sequence[RunRecord]) -> Figure | None:
    """FID against the number of images under one protocol; None where no record holds it.

    The interval is that of the mean over parts and seeds; for a single value that of its standard
    error, which comes from the spread of the parts.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for members in group(records):
        known = [r.uncertainty for r in members if r.uncertainty]
        values: dict[int, list[float]] = defaultdict(list)
        for uncertainty in known:
            for size, parts in uncertainty.fid_by_num_images.items():
                values[size] += parts
        line = []
        for size, of in sorted(values.items()):
            mean = summarise(of)
            half_width = mean.half_width
            if mean.n == 1 and (infinity := known[0].fid_infinity):
                half_width = NORMAL_95 * infinity.standard_error
            line.append((float(size), mean.mean, half_width))
        nfe = f", nfe {members[0].nfe}" if members[0].nfe else ""
        lines |= {members[0].model + nfe: line} if line else {}
    if not lines:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.add_subplot()
    _draw_lines(ax, lines)
    ax.set(xscale="log", xlabel="num_images", title=f"{LABELS['fid']} ({protocol_of(records[0])})")
    ax.set_xticks(ticks := sorted({x for line in lines.values() for x, _, _ in line})[-4:])
    ax.set_xticklabels([f"{tick:,.0f}" for tick in ticks])
    ax.minorticks_off()
    ax.legend()
    return figure


def training_figure(path: Path) -> Figure:
    """Loss against images seen; a dashed line where the number of time points N changes.

    Raises:
        ValueError: Not a log of training.
    """
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        xs, ys = zip(*[(float(e["images"]), float(e["loss"])) for e in entries], strict=True)
        if not all(map(math.isfinite, ys)):
            raise ValueError("a loss is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a log of training ({error}); remove it or copy log.jsonl again"
        ) from error
    figure = Figure(figsize=(6, 3), layout="constrained")
    ax = figure.add_subplot()
    every = math.ceil(len(xs) / CURVE_POINTS)
    ax.plot(xs[::every], ys[::every])
    scales = [entry.get("num_scales") for entry in entries]
    changes = [
        (x, n)
        for x, n, before in zip(xs, scales, [None, *scales], strict=False)
        if n and n != before
    ]
    end = -math.inf
    for x, n in changes:
        ax.axvline(x, color="black", linestyle=":", linewidth=0.8)
        if x > end:  # else the texts would overlap
            place: Any = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top"}
            ax.annotate(f"N = {n}", (x, 1), fontsize=6, **place)
            end = x + (xs[-1] - xs[0]) / 30
    ax.set(title=f"{path.stem}: loss", xlabel="images_seen")
    ax.set_yscale("log" if min(ys) > 0 else "linear")
    return figure


def waterfall_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Scores from one protocol to another as SVG, one bar a change, one panel a metric.

    Args:
        rows: Rows of `explanation_rows`: `change`, `detail`, and METRIC and "METRIC moved" for
            each metric.
        path: File to write.
    """
    metrics: list[Metric] = [m for m in LABELS if f"{m} moved" in rows[0]]
    details = [textwrap.fill(str(row["detail"]), LABEL_WIDTH) for row in rows]
    labels = [f"{row['change']}\n{detail}" for row, detail in zip(rows, details, strict=True)]
    labels.append("final")
    with matplotlib.rc_context(STYLE):
        size = (3.2 + 2.6 * len(metrics), 0.9 + 0.55 * len(labels))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            values = [row[metric] for row in rows]
            moved = [row[f"{metric} moved"] for row in rows[1:]]
            ax.barh([0, len(rows)], [values[0], values[-1]], color="#999999")
            colours = [COLOURS[0] if change < 0 else COLOURS[1] for change in moved]
            bars = ax.barh(range(1, len(rows)), moved, left=values[:-1], color=colours)
            ax.bar_label(bars, [f"{change:+.4g}" for change in moved], fontsize=7)
            for i, value in ((0, values[0]), (len(rows), values[-1])):
                ax.annotate(f" {value:.5g}", (value, i), va="center", fontsize=7)
            ax.set_title(LABELS[metric])
            ax.use_sticky_edges = False  # room for the numbers beside the longest bar
            ax.margins(x=0.25)
        axes[0].set_yticks(range(len(labels)), labels, fontsize=7)
        axes[0].invert_yaxis()
        with atomic_path(path) as temporary:
            temporary.write_text(_svg(figure), encoding="utf-8")
