"""Figures as SVG: scores, training curves, and the way from one protocol to another.

Fixed ids and no date, so that one version of matplotlib writes the same bytes everywhere.
"""

import io
import itertools
import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmrepro.files import atomic_path
from cmrepro.records import RunRecord
from cmrepro.report.comparability import anchors, group, is_ablation
from cmrepro.report.results import PAPER_METRICS, protocol_of
from cmrepro.report.statistics import Summary, summarise
from cmrepro.report.tables import LABELS
from cmrepro.settings import Metric

# Colours that colour-blind readers tell apart (Okabe, Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8c6d00", "#56B4E9")
STYLE: Any = {"svg.hashsalt": "cmrepro", "svg.fonttype": "none", "font.size": 8}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "axes.prop_cycle": cycler(color=COLOURS)}
CURVE_POINTS = 300  # of a training curve; a longer log is thinned
NORMAL_95 = 1.96  # standard errors from the middle of a normal interval of 95 % to its end
LEAST_SHARE = 0.1  # of the vertical axis, which anchors leave to the lines


def figures(records: Sequence[RunRecord], training: Path) -> dict[str, dict[str, str]]:
    """SVG by kind and file name without ending; logs of training are *.jsonl in a folder."""
    by_protocol: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_protocol[protocol_of(record)].append(record)
    logs = sorted(training.glob("*.jsonl"), key=lambda path: path.stem)
    with matplotlib.rc_context(STYLE):
        drawn: dict[str, dict[str, Figure | None]] = {
            "score": {name: score_figure(of) for name, of in by_protocol.items()},
            "fid_by_num_images": {name: num_images_figure(of) for name, of in by_protocol.items()},
            "training": {path.stem: training_figure(path) for path in logs},
        }
        return {
            kind: {re.sub(r"[^\w.]+", "-", f"{kind}_{n}"): _svg(f) for n, f in named.items() if f}
            for kind, named in drawn.items()
        }


def _svg(figure: Figure) -> str:
    figure.savefig(buffer := io.StringIO(), format="svg", metadata={"Date": None})
    return buffer.getvalue()


def score_figure(records: Sequence[RunRecord]) -> Figure | None:
    """Scores against NFE under one protocol, without ablations; None without multistep sampling.

    Dashed levels are images from elsewhere, which say what the scale means; those that would leave
    the lines no room only get a name in the legend.
    """
    multistep = [r for r in records if r.sampler and r.sampler.algorithm == "multistep"]
    groups = group(r for r in multistep if not is_ablation(r))
    shown = [m for m in PAPER_METRICS if any(m in members[0].scores for members in groups)]
    if not shown:
        return None
    rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(8, 3 * rows), layout="constrained")
    for i, metric in enumerate(shown, 1):
        ax = figure.add_subplot(rows, 2, i)
        lines: dict[str, dict[int, Summary]] = defaultdict(dict)
        context: dict[str, RunRecord] = {}
        for members in (g for g in groups if metric in g[0].scores):
            first = members[0]
            mean = summarise([r.scores[metric] for r in members])
            lines[f"{first.model}, {first.num_images:,} images"][first.nfe or 0] = mean
            context |= {r.model: r for r in anchors(first, records) if metric in r.scores}
        _draw_lines(ax, lines)
        low, high = ax.get_ylim()
        best, direction = (min, "lower") if metric == "fid" else (max, "higher")
        levels = {name: r.scores[metric] for name, r in context.items()}
        # The anchors' first is the best by FD; another order says nothing of quality.
        ordered = not levels or next(iter(levels.values())) == best(levels.values())
        for name, value in levels.items():
            ax.axhline(value, ls="--", lw=0.8, alpha=0.6, color="k", label=f"{name} {value:.4g}")
        bottom, top = ax.get_ylim()
        if high - low < LEAST_SHARE * (top - bottom):
            ax.set_ylim(low, high)
        ax.set_xticks(sorted({nfe for line in lines.values() for nfe in line}))
        better = f"{direction} is better" if ordered else "no order of quality"
        ax.set_title(f"{LABELS[metric]} ({better})")
        ax.set_xlabel(f"network evaluations ({protocol_of(records[0])})")
        ax.legend(fontsize=6)
    return figure


def _draw_lines(ax: Axes, lines: Mapping[str, dict[int, Summary]]) -> None:
    """Means by position, with error bars where there is a spread."""
    for (label, line), marker in zip(lines.items(), "osD^v" * len(lines), strict=False):
        bars = [0.0 if math.isnan(y.half_width) else y.half_width for y in line.values()]
        means = [y.mean for y in line.values()]
        ax.errorbar([*line], means, bars, marker=marker, markersize=4, capsize=2, label=label)


def num_images_figure(records: Sequence[RunRecord]) -> Figure | None:
    """FID against the number of images under one protocol; None where no record holds it."""
    lines: dict[str, dict[int, Summary]] = {}
    for members in group(records):
        known = [r.uncertainty for r in members if r.uncertainty]
        values: dict[int, list[float]] = defaultdict(list)
        for size, parts in (item for u in known for item in u.fid_by_num_images.items()):
            values[size] += parts
        line = {size: summarise(of) for size, of in sorted(values.items())}
        for size, mean in line.items():  # one value has the interval of its standard error
            if mean.n == 1 and (infinity := known[0].fid_infinity):
                line[size] = Summary(mean.mean, NORMAL_95 * infinity.standard_error, 1)
        nfe = f", nfe {members[0].nfe}" if members[0].nfe else ""
        lines |= {members[0].model + nfe: line} if line else {}
    if not lines:
        return None
    ax = (figure := Figure(figsize=(6, 4), layout="constrained")).add_subplot()
    _draw_lines(ax, lines)
    ax.set(xscale="log", xlabel="num_images", title=f"{LABELS['fid']} ({protocol_of(records[0])})")
    ticks = sorted({size for line in lines.values() for size in line})[-4:]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.legend()
    return figure


def training_figure(path: Path) -> Figure:
    """Loss against images seen; a dashed line where the number of time points N changes."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is not a log of training ({error})") from error
    xs, ys = ([entry[key] for entry in entries] for key in ("images", "loss"))
    known = [(x, n) for x, e in zip(xs, entries, strict=True) if (n := e.get("num_scales"))]
    ax = (figure := Figure(figsize=(6, 3), layout="constrained")).add_subplot()
    every = math.ceil(len(xs) / CURVE_POINTS)
    ax.plot(xs[::every], ys[::every])
    end = -math.inf
    for x, n in (first for _, (first, *_) in itertools.groupby(known, key=lambda pair: pair[1])):
        ax.axvline(x, color="black", linestyle=":", linewidth=0.8)
        if x > end:  # else the texts would overlap
            place: Any = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top"}
            ax.annotate(f"N = {n}", (x, 1), fontsize=6, **place)
            end = x + (xs[-1] - xs[0]) / 30
    ax.set(title=f"{path.stem}: loss", xlabel="images_seen")
    ax.set_yscale("log" if min(ys) > 0 else "linear")
    return figure


def waterfall_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows of `explain` as SVG: one bar a change of protocol, one panel a metric."""
    metrics: list[Metric] = [m for m in LABELS if f"{m} moved" in rows[0]]
    labels = [f"{row['change']}\n{textwrap.fill(str(row['detail']), 40)}" for row in rows]
    with matplotlib.rc_context(STYLE):
        size = (3.2 + 2.6 * len(metrics), 0.9 + 0.55 * (len(rows) + 1))
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
        axes[0].set_yticks(range(len(rows) + 1), [*labels, "final"], fontsize=7)
        axes[0].invert_yaxis()
        with atomic_path(path) as temporary:
            temporary.write_text(_svg(figure), encoding="utf-8")
