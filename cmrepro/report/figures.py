"""Figures as SVG: samples, scores, training curves, distances by time.

Fixed ids and no date, so that one version of matplotlib writes the same bytes everywhere.
"""

import io
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from PIL import Image

from cmrepro.data.grids import REAL, TILE
from cmrepro.records import RunRecord, TheoremCheck
from cmrepro.report.comparability import anchors, facts, group, is_ablation
from cmrepro.report.results import model_at, protocol_of, ranked, summary
from cmrepro.report.tables import LABELS
from cmrepro.report.theorems import theorem_figure
from cmrepro.schema import convert, to_builtins

# Colours that colour-blind readers tell apart (Okabe, Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8c6d00", "#56B4E9")
STYLE: Any = {"svg.hashsalt": "cmrepro", "svg.fonttype": "none", "font.size": 8}
STYLE |= {"axes.grid": True, "grid.alpha": 0.3, "axes.prop_cycle": cycler(color=COLOURS)}
CURVE_POINTS = 300  # of a training curve; a longer log is thinned
# Fields that FD is drawn against, with the recipe fields that vary along a line.
TRENDS = {"num_scales": ("num_scales",), "images_seen": ("total_steps", "ema_rate")}
TREND_POINTS = 3  # of a line, at least


class LogEntry(TypedDict):
    """Fields that each line of a training log has, among others."""

    images: int
    loss: float


def figures(
    records: Sequence[RunRecord], results: Path, checks: Sequence[TheoremCheck] = ()
) -> dict[str, dict[str, str]]:
    """SVG by kind and file name without ending, from records, samples/*.png, training/*.jsonl."""
    by_protocol: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_protocol[protocol_of(record)].append(record)
    grids = results / "samples"
    trainings: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)  # by seed of each model
    for name, path in training_logs(results.parent).items():
        if entries := read_log(path):
            trainings[re.sub(r"-seed\d+$", "", name)].append(entries)
    ablations = {record.model for record in records if is_ablation(record)}
    firsts = {name: of[0] for name, of in trainings.items() if name not in ablations}
    with matplotlib.rc_context(STYLE):
        drawn: dict[str, dict[str, Figure | None]] = {
            "samples": {name: samples_figure(of, grids) for name, of in by_protocol.items()},
            "score": {name: score_figure(of) for name, of in by_protocol.items()},
            "trends": {name: trends_figure(of) for name, of in by_protocol.items()},
            "training": {name: training_figure(name, of) for name, of in trainings.items()},
            "distances": {"by_time": distance_figure(firsts)},
            "theorems": {
                "errors": theorem_figure(checks) if any(c.errors for c in checks) else None
            },
        }
        return {
            kind: {re.sub(r"[^\w.]+", "-", f"{kind}_{n}"): _svg(f) for n, f in named.items() if f}
            for kind, named in drawn.items()
        }


def _svg(figure: Figure) -> str:
    figure.savefig(buffer := io.StringIO(), format="svg", metadata={"Date": None})
    return buffer.getvalue()


def samples_figure(records: Sequence[RunRecord], grids: Path) -> Figure | None:
    """The first row of each model's grid under its FD, best first; None without grids.

    Real images stand above, where the folder of grids holds them (`cmrepro report --real`).
    """
    strips = {"real images": grids / REAL.name}
    for mean, first in ranked(records):
        if first.nfe:
            label = f"{model_at(first.model, first.nfe)}: {LABELS['fid']} {mean}"
            strips[label] = grids / first.grid_name
    strips = {label: path for label, path in strips.items() if path.is_file()}
    if not strips:
        return None
    figure = Figure(figsize=(5, 0.68 * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for ax, (label, path) in zip(axes, strips.items(), strict=True):
        with Image.open(path) as grid:
            strip = ax.imshow(np.asarray(grid)[:TILE], interpolation="none")
        strip.set_gid(path.stem)  # else named by a checksum of its compressed bytes
        ax.set_axis_off()
        ax.set_title(label, loc="left", fontsize=9, pad=2)
    return figure


def score_figure(records: Sequence[RunRecord]) -> Figure | None:
    """FD against NFE under one protocol, without ablations; None without a model.

    Dashed levels are images from elsewhere, which say what the scale means.
    """
    lines: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    levels: dict[str, RunRecord] = {}
    for mean, first in ranked(records):
        if first.nfe:
            label = f"{first.model}, {first.num_images:,} images"
            lines[label].append((first.nfe, mean.mean, mean.half_width))
            levels |= {f"{r.model} {r.scores['fid']:.4g}": r for r in anchors(first, records)}
    if not lines:
        return None
    ax = (figure := Figure(figsize=(6, 4), layout="constrained")).add_subplot()
    for (label, line), marker in zip(lines.items(), itertools.cycle("osD^v"), strict=False):
        nfe, means, bars = zip(*sorted(line), strict=True)
        ax.errorbar(nfe, means, bars, marker=marker, capsize=2, label=label)
    for label, record in levels.items():
        ax.axhline(record.scores["fid"], ls="--", lw=0.8, alpha=0.6, color="k")
        place: Any = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 7}
        ax.annotate(label, (0.02, record.scores["fid"]), **place)
    ax.set(xscale="log", yscale="log", xlabel=f"nfe ({protocol_of(records[0])})")
    ticks = sorted({nfe for line in lines.values() for nfe, *_ in line})
    ax.set_xticks(ticks, map(str, ticks))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.minorticks_off()
    ax.set_title(f"{LABELS['fid']} (lower is better)")
    ax.legend()
    return figure


def trends_figure(records: Sequence[RunRecord]) -> Figure | None:
    """FD against N, and against images seen, of models that otherwise agree; None without any.

    With ablations: the first is Figure 3b and c of the paper at the end of the training.
    """
    groups = group(r for r in records if r.nfe and "fid" in r.scores)
    panels = {field: _trends(groups, field) for field in TRENDS}
    shown = {field: lines for field, lines in panels.items() if lines}
    if not shown:
        return None
    figure = Figure(figsize=(3.5 * len(shown), 3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (field, lines) in zip(axes, shown.items(), strict=True):
        for (label, points), marker in zip(lines, itertools.cycle("osD^v"), strict=False):
            values, means, bars = zip(*sorted(points), strict=True)
            ax.errorbar(values, means, bars, marker=marker, capsize=2, label=label)
        ticks = sorted({value for _, points in lines for value, *_ in points})
        ax.set(xscale="log", xlabel=field, ylabel=LABELS["fid"])
        ax.set_xticks(ticks, [f"{value:,}" for value in ticks], rotation=45)
        ax.minorticks_off()
        ax.legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _trends(
    groups: Sequence[Sequence[RunRecord]], field: str
) -> list[tuple[str, list[tuple[int, float, float]]]]:
    """Label of each line and its points: value of the field, mean and half the interval."""
    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = defaultdict(list)
    (other,) = TRENDS.keys() - {field}
    for members in groups:
        first, known, mean = members[0], facts(members[0]), summary(members, "fid")
        recipe = first.checkpoint and first.checkpoint.recipe
        if first.nfe and recipe and isinstance(value := known.get(field), int):
            fixed = {k: v for k, v in to_builtins(recipe).items() if k not in TRENDS[field]}
            shared = f"{known[other]:,}" if isinstance(known[other], int) else known[other]
            label = f"{model_at(recipe.name, first.nfe)}\n{recipe.distance}, "
            label += f"lambda = {recipe.weighting or 1}, {other} {shared}"
            same = label, repr((fixed, known.get("teacher_sha256"), first.num_images))
            lines[same].append((value, mean.mean, mean.half_width))
    return [(label, of) for (label, _), of in lines.items() if len(of) >= TREND_POINTS]


def training_logs(out: Path) -> dict[str, Path]:
    """Logs by training: those in results/training, and log.jsonl where `train` wrote to `out`.

    The files are MODEL.jsonl, and MODEL-seedN.jsonl of other training seeds than 0.
    """
    found = sorted((out / "results/training").glob("*.jsonl"), key=lambda path: path.stem)
    logs = {path.stem: path for path in found}
    if (path := out / "log.jsonl").is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            if first := re.match(r'\{"model": "([^"]+)", "step": .*\}\n', file.readline()):
                logs[first[1]] = path
    return logs


def read_log(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a training log."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]  # not a torn one
        convert(list[LogEntry], found, "")
        return found
    except ValueError as error:
        raise ValueError(f"{path} is not a log of training ({error})") from error


def distance_figure(logs: Mapping[str, Sequence[dict[str, Any]]]) -> Figure | None:
    """Distance of f(x_t, t) to the end of the teacher's trajectory; None without any.

    Left against t: averaged weights are drawn solid, online weights dotted, initial ones dashed.
    Right that of the averaged weights at the largest t, against images seen.
    """
    found = {name: [e for e in log if "ema_distances" in e] for name, log in logs.items()}
    shown = {name: entries for name, entries in found.items() if entries}
    if not shown:
        return None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    by_time, by_images = figure.subplots(1, 2, sharey=True)
    for (name, entries), colour in zip(shown.items(), itertools.cycle(COLOURS), strict=False):
        lines: tuple[tuple[dict[str, float], dict[str, Any]], ...] = (
            (entries[0]["ema_distances"], {"ls": "--", "lw": 0.8}),
            (entries[-1]["online_distances"], {"ls": ":", "lw": 0.8}),
            (entries[-1]["ema_distances"], {"label": name}),
        )
        for distances, style in lines:
            by_time.plot([*map(float, distances)], [*distances.values()], color=colour, **style)
        at_largest = [next(iter(entry["ema_distances"].values())) for entry in entries]
        by_images.plot([entry["images"] for entry in entries], at_largest, color=colour)
    by_time.set(xscale="log", yscale="log", xlabel="t", ylabel="mean square distance")
    by_images.set(xlabel="images_seen, at the largest t")
    by_images.locator_params(axis="x", nbins=4)
    by_time.legend()
    return figure


def training_figure(name: str, trainings: Sequence[Sequence[dict[str, Any]]]) -> Figure:
    """Loss of each training seed, and N where it follows a schedule, against images seen."""
    ax = (figure := Figure(figsize=(6, 3), layout="constrained")).add_subplot()
    thinned = [of[:: math.ceil(len(of) / CURVE_POINTS)] for of in trainings]
    for entries in thinned:
        ax.plot([e["images"] for e in entries], [e["loss"] for e in entries])
    ax.set(title=name, xlabel="images_seen", ylabel="loss")
    ax.set_yscale("log" if all(e["loss"] > 0 for of in thinned for e in of) else "linear")
    ns: list[Any] = [entry.get("num_scales") for entry in thinned[0]]
    if len({*ns}) > 1:
        schedule = ax.twinx()
        schedule.grid(False)
        xs = [entry["images"] for entry in thinned[0]]
        schedule.step(xs, ns, where="post", color="k", lw=0.8, ls=":")
        schedule.set_ylabel("N (dotted)")
    return figure
