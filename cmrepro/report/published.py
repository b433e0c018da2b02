"""The paper's Tables 1 and 2 with our columns beside theirs, later work, the deviation ledger."""

from typing import NamedTuple

from cmrepro.paper import (
    TABLE3_RECIPES,
    AbsoluteClaim,
    Deviation,
    ResultRow,
    claims,
    deviations,
    hyperparameters,
    later_work,
    metrics,
    result_rows,
)
from cmrepro.records3 import RunRecord
from cmrepro.report.matching import is_ablation
from cmrepro.report.results import LABELS, group, recipe_of, summarise
from cmrepro.report.verdicts import absolute_verdict

# The teachers are no claims: by the recipe that a demo model imitates or the name of the released
# checkpoint, whose origin has no recipe.
TEACHERS = {
    ("CIFAR-10", "EDM"): {"cifar10-edm", "edm-cifar10"},
    ("ImageNet 64x64", "EDM"): {"edm-imagenet64"},
    ("LSUN Bedroom 256x256", "EDM"): {"edm-lsun-bedroom256"},
    ("LSUN Cat 256x256", "EDM"): {"edm-lsun-cat256"},
}
AS_PUBLISHED = "as published"
TABLE3_FIELDS = {
    "Learning rate": "learning_rate",
    "Batch size": "batch_size",
    "mu": "target_ema",
    "mu0": "mu0",
    "s0": "s0",
    "s1": "s1",
    "N": "num_scales",
    "ODE solver": "solver",
    "EMA decay rate": "ema_rate",
    "Training iterations": "total_steps",
    "Mixed-precision (FP16)": "mixed_precision",
    "Dropout probability": "dropout",
    "Number of GPUs": "num_gpus",
}


class PaperRow(NamedTuple):
    """A printed row with what we measured of it.

    Attributes:
        cells: The printed columns, then `ours` ("as published" for methods that this suite does
            not have, "not measured", or the model), our scores as mean ± interval, n and protocol,
            and the verdict on the row's claims.
        records: That our scores are of.
    """

    cells: dict[str, object]
    records: list[RunRecord]


def paper_rows(number: int, records: list[RunRecord]) -> list[PaperRow]:
    """Table 1 or 2 as printed, every row, with what we measured of CD, CT and EDM.

    Args:
        number: 1 or 2.
        records: Ours; a row of the paper has one row here for each group of them but ablations.
    """
    absolute = [claim for claim in claims() if isinstance(claim, AbsoluteClaim)]
    models = TEACHERS | {(c.dataset, c.method): {c.setting.recipe} for c in absolute}
    rows = []
    for row in result_rows(number):
        printed = _printed(row)
        names = models.get((row.dataset, row.method))
        if names is None:
            rows.append(PaperRow(printed | {"ours": AS_PUBLISHED}, []))
            continue
        ours = [
            r for r in records if r.nfe == row.nfe and names & _names(r) and not is_ablation(r)
        ]
        if not ours:
            rows.append(PaperRow(printed | {"ours": "not measured"}, []))
            continue
        own = [
            c
            for c in absolute
            if (c.dataset, c.method, c.setting.nfe) == (row.dataset, row.method, row.nfe)
        ]
        answers = dict.fromkeys(absolute_verdict(claim, records).answer for claim in own)
        rows += [
            PaperRow(printed | _measured(members) | {"verdict": ", ".join(answers)}, members)
            for members in group(ours).values()
        ]
    return rows


def _names(record: RunRecord) -> set[str]:
    """What a model goes by: the recipe that it stands for, its name if it was released."""
    return {recipe_of(record), str(record.checkpoint.get("origin", {}).get("name"))}


class Table3Cell(NamedTuple):
    """A printed cell of Table 3 and where the official code has something else there."""

    text: str
    deviations: list[Deviation]


def table3_cells() -> dict[str, dict[str, Table3Cell]]:
    """Table 3 by row and recipe, with the deviations between its variants."""
    both = [d for d in deviations() if d.follow == "both"]
    return {
        row.name: {
            recipe: Table3Cell(
                row.cells.get(column, ""),
                [d for d in both if TABLE3_FIELDS[row.name] in d.fields and recipe in d.recipes],
            )
            for column, recipe in TABLE3_RECIPES.items()
        }
        for row in hyperparameters()
    }


def _printed(row: ResultRow) -> dict[str, object]:
    """The printed cells of a row, under the headings of its table."""
    shown = {1: ("fid", "is"), 2: ("fid", "precision", "recall")}[row.table]
    labels = metrics()
    cells: dict[str, object] = {"data": row.dataset} if row.table == 2 else {}
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


def later_work_rows() -> list[dict[str, object]]:
    """Results of later few-step models, for context: other training, other protocols."""
    return [
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
    ]


def ledger_rows() -> list[dict[str, object]]:
    """Where the paper and its official code disagree, in the columns that a reader needs."""
    return [
        {
            "id": deviation.id,
            "item": deviation.item,
            "paper": deviation.paper,
            "released": deviation.released,
            "here": deviation.action,
        }
        for deviation in deviations()
        if deviation.row is not None
    ]
