"""The paper's Tables 1 and 2 with our columns beside theirs, later work, the deviation ledger."""

import pandas as pd

from cmrepro.paper import (
    AbsoluteClaim,
    ResultRow,
    claims,
    deviations,
    later_work,
    metrics,
    table,
)
from cmrepro.records import RunRecord
from cmrepro.report.results import LABELS, group, recipe_of, summarise
from cmrepro.report.verdicts import absolute_verdict

TEACHERS = {("CIFAR-10", "EDM"): "cifar10-edm"}
AS_PUBLISHED = "as published"


def paper_frame(number: int, records: list[RunRecord]) -> pd.DataFrame:
    """Table 1 or 2 as printed, every row, with what we measured of CD, CT and EDM.

    Args:
        number: 1 or 2.
        records: Ours.

    Returns:
        The printed columns, then `ours` ("as published" for methods that this suite does not
        have, "not measured", or the model), our scores as mean ± interval, n and protocol, and the
        verdict on the row's claims.
    """
    absolute = [claim for claim in claims() if isinstance(claim, AbsoluteClaim)]
    recipes = TEACHERS | {(c.dataset, c.method): c.setting.recipe for c in absolute}
    rows = []
    for row in table(number):  # type: ignore[call-overload]
        recipe = recipes.get((row.dataset, row.method))
        ours = [r for r in records if recipe_of(r) == recipe and r.nfe == row.nfe]
        own = [
            c
            for c in absolute
            if (c.dataset, c.method, c.setting.steps) == (row.dataset, row.method, row.nfe)
        ]
        printed = _printed(row, number)
        if recipe is None:
            rows.append(printed | {"ours": AS_PUBLISHED})
        elif not ours:
            rows.append(printed | {"ours": "not measured"})
        else:
            answers = dict.fromkeys(absolute_verdict(claim, records).answer for claim in own)
            rows += [
                printed | _measured(members) | {"verdict": ", ".join(answers)}
                for members in group(ours).values()
            ]
    return pd.DataFrame(rows)


def _printed(row: ResultRow, number: int) -> dict[str, object]:
    """The printed cells of a row, under the headings of its table."""
    shown = {1: ("fid", "is"), 2: ("fid", "precision", "recall")}[number]
    labels = metrics()
    cells: dict[str, object] = {"data": row.dataset} if number == 2 else {}
    cells |= {"method": row.method, "NFE": row.nfe}
    return cells | {labels[m].label: str(row.scores[m]) if m in row.scores else "" for m in shown}


def _measured(members: list[RunRecord]) -> dict[str, object]:
    """Our columns of a group of records."""
    first = members[0]
    scores: dict[str, object] = {
        f"our {LABELS[m]}": str(summarise([r.scores[m] for r in members]))
        for m in ("fid", "is", "precision", "recall")
        if m in first.scores
    }
    protocol = f"{first.protocol['name']} v{first.protocol['version']}"
    n = f"{len(members)} x {first.num_images:,}"
    return {"ours": first.model, **scores, "n": n, "protocol": protocol}


def later_work_frame() -> pd.DataFrame:
    """Results of later few-step models, for context: other training, other protocols."""
    return pd.DataFrame(
        {
            "data": row.dataset,
            "method": row.method,
            "NFE": row.nfe,
            "FID": str(row.fid),
            "images seen": f"{row.images_seen:,}" if row.images_seen else "",
            "paper": row.paper + (f" (arXiv {row.arxiv})" if row.arxiv else ""),
            "status": row.verified,
        }
        for row in later_work()
    )


def ledger_frame() -> pd.DataFrame:
    """Where the paper and its official code disagree, in the columns that a reader needs."""
    return pd.DataFrame(
        {
            "id": deviation.id,
            "item": deviation.item,
            "paper": deviation.paper,
            "released": deviation.released,
            "here": deviation.action,
        }
        for deviation in deviations()
        if deviation.row is not None
    )
