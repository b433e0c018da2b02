"""Line charts as SVG.

Drawn here and not by a plotting library: `cmrepro report --check` compares every file digit by
digit, and a library's output changes with its version. Colours follow the reader's light or dark
scheme; the text is text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 300, 200  # of the chart without its legend, in units that are pixels at full size
LEFT, RIGHT, TOP, BOTTOM = 48, 18, 38, 40  # margins around the plot
LEGEND_ROW = 16
PADDING = 0.06  # of the range of the values, on either side
MAX_TICKS = 6
DIGIT = 6.5  # width of one, at most
LEAST_SHARE = 0.1  # of the vertical axis, which levels leave to the lines
MARKED_POINTS = 12  # a line of more points is drawn without markers

# Colours that colour-blind readers tell apart (Okabe, Ito 2008), lighter ones on dark ground; the
# shapes of the markers tell lines apart where colours repeat.
LIGHT = ("#0072B2", "#D55E00", "#00785a", "#a8437e", "#7a5c00", "#5b5bd6")
DARK = ("#56B4E9", "#f0883e", "#35c79a", "#e29bc4", "#e6c95c", "#a3a3ff")
MARKERS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3-3h6v6h-6z", "M0-4l4 7h-8z")
STYLE = (
    ".chart{font:11px system-ui,sans-serif;--fg:#1b1f24;--soft:#c9ced6}"
    ".chart text{fill:var(--fg)}.chart .name{font-weight:600;font-size:12px}"
    ".chart .grid{stroke:var(--soft);stroke-width:.6}"
    ".chart .line{fill:none;stroke:var(--c);stroke-width:1.8}"
    ".chart .marker{fill:var(--c)}.chart .mark{stroke:var(--fg);stroke-dasharray:2 3;opacity:.5}"
    + "".join(f".chart .s{i}{{--c:{colour}}}" for i, colour in enumerate(LIGHT))
    + "@media(prefers-color-scheme:dark){.chart{--fg:#e6e9ee;--soft:#3d444d}"
    + "".join(f".chart .s{i}{{--c:{colour}}}" for i, colour in enumerate(DARK))
    + "}"
)


class Point(NamedTuple):
    """A value with half its interval; NaN where there is none."""

    x: float
    y: float
    half_width: float = math.nan

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the interval; twice `y` without one."""
        spread = 0.0 if math.isnan(self.half_width) else self.half_width
        return self.y - spread, self.y + spread


@dataclass(frozen=True)
class Chart:
    """One line chart.

    Attributes:
        title: Above the plot.
        x_label: Below the horizontal axis.
        lines: Points by label, in the order of x; at least one point.
        log_x: Whether the horizontal axis is logarithmic; needs positive values.
        log_y: Likewise the vertical one.
        x_ticks: Where the horizontal axis has numbers; round numbers by default.
        marks: x and text of vertical lines.
        mark_name: What the texts of the marks are, beside them.
        levels: y and name of horizontal lines. Where they would leave the others less than
            `LEAST_SHARE` of the axis, they are only named below the plot.
    """

    title: str
    x_label: str
    lines: dict[str, list[Point]]
    log_x: bool = False
    log_y: bool = False
    x_ticks: Sequence[float] = ()
    marks: Sequence[tuple[float, str]] = ()
    mark_name: str = ""
    levels: Sequence[tuple[float, str]] = ()


class Axis(NamedTuple):
    """Where values lie on an axis, and which of them have numbers."""

    place: Callable[[float], float]
    ticks: Sequence[float]


def svg(chart: Chart) -> str:
    """The chart as an SVG element with its own style; the same text everywhere."""
    points = [point for line in chart.lines.values() for point in line]
    ends = [end for p in points for end in p.ends]
    widened = [*ends, *(value for value, _ in chart.levels)]
    fits = max(ends) - min(ends) >= LEAST_SHARE * (max(widened) - min(widened))
    x = _axis([p.x for p in points], LEFT, WIDTH - RIGHT, chart.log_x, chart.x_ticks)
    y = _axis(widened if fits else ends, HEIGHT - BOTTOM, TOP, chart.log_y)
    height = HEIGHT + LEGEND_ROW * (len(chart.lines) + len(chart.levels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(chart.title)}"><style>{STYLE}</style>',
        f'<text class="name" x="{LEFT}" y="15">{escape(chart.title)}</text>',
        *_grid(x, y),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, chart.x_label),
        *_marks(chart, x.place),
    ]
    for i, (label, line) in enumerate(chart.lines.items()):
        parts += _line(i, label, line, x.place, y.place)
    for i, (value, name) in enumerate(sorted(chart.levels, reverse=True), len(chart.lines)):
        parts += _level(i, f"{name} {number(value)}", y.place(value) if fits else None)
    return "\n".join([*parts, "</svg>\n"])


def _marks(chart: Chart, place: Callable[[float], float]) -> list[str]:
    """Vertical lines with their texts above the frame, as far as these have room."""
    parts = [_text(LEFT - 5, TOP - 4, chart.mark_name, "end")] if chart.mark_name else []
    free = float(LEFT)
    for value, label in chart.marks:
        at, half = place(value), DIGIT * len(label) / 2
        parts.append(f'<path class="mark" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        if at - half >= free:
            parts.append(_text(at, TOP - 4, label))
            free = at + half + DIGIT / 2
    return parts


def _level(i: int, text: str, at: float | None) -> list[str]:
    """A horizontal line and its row in the legend; without a height only that."""
    row = HEIGHT + LEGEND_ROW * i + 6
    if at is None:
        return [_text(4, row + 4, f"not drawn: {text}", "start")]
    return [
        f'<path class="mark" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>',
        f'<path class="mark" d="M{LEFT - 8} {row}h16"/>',
        _text(LEFT + 14, row + 4, text, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(x: Axis, y: Axis) -> list[str]:
    """Lines and numbers of both axes."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="grid" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none"/>']
    for value in x.ticks:
        parts.append(_text(x.place(value), bottom + 14, tick(value)))
    for value in y.ticks:
        at = y.place(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, at + 4, tick(value), "end"))
    return parts


def _line(
    i: int,
    label: str,
    points: list[Point],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[str]:
    """A line with its intervals, markers and row in the legend."""
    marker = MARKERS[i % len(MARKERS)]
    path = "L".join(f"{x(p.x):.1f} {y(p.y):.1f}" for p in points)
    parts = [f'<g class="s{i % len(LIGHT)}"><path class="line" d="M{path}"/>']
    for p in points if len(points) <= MARKED_POINTS else ():
        low, high = p.ends
        spread = "" if low == high else f" ± {number(p.half_width)}"
        parts.append(
            f'<path class="line" d="M{x(p.x):.1f} {y(low):.1f}V{y(high):.1f}"/>'
            f'<path class="marker" transform="translate({x(p.x):.1f} {y(p.y):.1f})" d="{marker}">'
            f"<title>{escape(label)}, {number(p.x)}: {number(p.y)}{spread}</title></path>"
        )
    row = HEIGHT + LEGEND_ROW * i + 6
    key = f'<path class="line" d="M{LEFT - 8} {row}h16"/>'
    if len(points) <= MARKED_POINTS:
        key += f'<path class="marker" transform="translate({LEFT} {row})" d="{marker}"/>'
    return [*parts, key + _text(LEFT + 14, row + 4, label, "start") + "</g>"]


def number(value: float) -> str:
    """A number: four significant digits, commas between thousands."""
    return f"{float(f'{value:.4g}'):,.10g}"


def tick(value: float) -> str:
    """A number for an axis, in thousands (k) where it has five digits."""
    return number(value) if abs(value) < 10_000 else f"{number(value / 1000)}k"


def _axis(
    values: Sequence[float], start: float, end: float, log: bool, ticks: Sequence[float] = ()
) -> Axis:
    """The axis from `start` to `end` (pixels) that holds all values."""
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    padding = PADDING * (high - low) or PADDING * (1.0 if log else abs(low)) or 1.0
    low, high = low - padding, high + padding

    def place(value: float) -> float:
        return start + (end - start) * (scale(value) - low) / (high - low)

    return Axis(place, ticks or (_decades(low, high) if log else _steps(low, high)))


def _steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in a range, as many as fit `MAX_TICKS`."""
    power = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < MAX_TICKS:
            break
    return [k * step for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the exponents, or as many powers alone as fit.

    A range without two of them has round steps instead.
    """
    exponents = range(math.ceil(low), math.floor(high) + 1)
    every = math.ceil(len(exponents) / MAX_TICKS) or 1
    fine = [f * 10.0**e for e in range(math.floor(low), math.ceil(high)) for f in (1, 2, 5)]
    inside = [value for value in fine if low <= math.log10(value) <= high]
    if len(inside) > MAX_TICKS:
        return [10.0**e for e in exponents[::every]]
    return inside if len(inside) > 1 else _steps(10**low, 10**high)
