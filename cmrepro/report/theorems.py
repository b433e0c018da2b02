"""Verdicts of the checked theorems as rows, and their figure."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from cmrepro.paper.theorems import Statement, statements
from cmrepro.records import TheoremCheck

ANSWERS = ("not reproduced", "inconclusive", "reproduced")  # the first that occurs holds


def verdict(statement: Statement, check: TheoremCheck) -> str:
    """Answer by the 95 % interval: inside the statement's bounds, outside, or across one."""
    low, high = check.interval
    if statement.at_least <= low and high <= statement.at_most:
        return "reproduced"
    outside = high < statement.at_least or low > statement.at_most
    return "not reproduced" if outside else "inconclusive"


def theorem_rows(checks: Sequence[TheoremCheck]) -> list[dict[str, Any]]:
    """A row for each statement: predicted value, measured ones by data, verdict on all data."""
    rows = []
    for statement in statements():
        found = [check for check in checks if check.id == statement.id]
        answers = {verdict(statement, check) for check in found}
        worst = [answer for answer in ANSWERS if answer in answers]
        rows.append(
            {name: getattr(statement, name) for name in ("source", "statement", "quantity")}
            | {"predicted": statement.predicted}
            | {check.data: _measured(check) for check in found}
            | {"verdict": worst[0] if worst else "not measured"}
        )
    return rows if checks else []


def _measured(check: TheoremCheck) -> str:
    low, high = check.interval
    return f"{check.value:.3g}" if low == high else f"{check.value:.3f} ({low:.3f} to {high:.3f})"


def theorem_figure(checks: Sequence[TheoremCheck]) -> Figure:
    """Errors against the number of intervals, a panel for each kind of data."""
    names = list(dict.fromkeys(check.data for check in checks))
    figure = Figure(figsize=(4.5 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
        for number, check in enumerate(c for c in checks if c.data == name and c.errors):
            intervals = [n - 1 for n in check.num_scales]
            line = ("-", "--", ":")[number // 6 % 3]
            ax.loglog(intervals, check.errors, line, marker=".", label=check.id)
        ax.set(title=name, xlabel="N - 1")
        ax.set_xticks(intervals, map(str, intervals))
        ax.minorticks_off()
    panels[0].set_ylabel("error")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure
