"""Records and verdicts as rows: means over seeds, the paper's tables with our scores, models."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from cmrepro.paper import METRICS, AbsoluteClaim, claims, recipes_of_rows, result_rows
from cmrepro.records import RunRecord
from cmrepro.report.comparability import (
    SCORED,
    anchors,
    compare_facts,
    facts,
    group,
    is_ablation,
    is_demo,
    is_own,
    num_trainings,
    seed_means,
    times_in_words,
    trained,
)
from cmrepro.report.compare import half_interval
from cmrepro.report.statistics import Summary, summarise
from cmrepro.report.tables import LABELS
from cmrepro.report.verdicts import Verdict, absolute_verdict, verdicts
from cmrepro.settings import Metric

AS_PUBLISHED = "as published"  # methods that this suite does not have
RECIPE_COLUMNS = (
    *("method", "distance", "weighting", "solver", "num_scales", "s0", "s1", "target_ema", "mu0"),
    *("batch_size", "optimizer", "learning_rate"),
)
TRAINING_COLUMNS = ("total_steps", "images_seen", "dataset", "weights")
SHOWN = ("model", "nfe", "num_images", "protocol", "protocol version")
Table = tuple[list[dict[str, Any]], list[str]]  # rows that name their notes by number, the notes


class PaperRow(NamedTuple):
    """A printed row with our scores of that model."""

    cells: dict[str, Any]  # the printed columns, then our model, means, n, protocol and verdicts
    records: list[RunRecord]  # the records behind our scores


def protocol_of(record: RunRecord) -> str:
    """Name and version of a record's protocol, and the reference where it is not its first."""
    protocol, reference = record.protocol, record.reference.name
    other = f", {reference}" if reference != protocol.reference else ""
    return f"{protocol.name} v{protocol.version}{other}"


def model_at(model: str, nfe: int) -> str:
    """A model with its number of evaluations, in words."""
    return f"{model}, {nfe} evaluation{'s' * (nfe != 1)}"


def summary(members: Sequence[RunRecord], metric: Metric) -> Summary:
    """Mean of a score over seeds with its interval; that of the sample set for one record.

    The seeds are those of training where a group has several.
    """
    if len(members) == 1:
        return Summary(members[0].scores[metric], half_interval(members[0], metric), 1)
    return summarise(seed_means(members, metric))


def ranked(records: Sequence[RunRecord]) -> list[tuple[Summary, RunRecord]]:
    """FD and first record of each group of seeds, best first, without ablations."""
    groups = group(r for r in records if "fid" in r.scores and not is_ablation(r))
    found = [(summary(members, "fid"), members[0]) for members in groups]
    return sorted(found, key=lambda pair: pair[0].mean)


def means(
    members: Sequence[RunRecord], shown: Iterable[Metric] = LABELS, prefix: str = ""
) -> dict[str, str]:
    """Mean ± half the 95 % interval of each score of a group of records, by prefix + label."""
    scored = (m for m in shown if m in members[0].scores)
    return {f"{prefix}{LABELS[m]}": str(summary(members, m)) for m in scored}


def interval_ends(members: Sequence[RunRecord]) -> dict[str, float]:
    """Mean of each score of a group of records, and the ends of its 95 % interval, as numbers."""
    row: dict[str, float] = {}
    for metric in (metric for metric in LABELS if metric in members[0].scores):
        found = summary(members, metric)
        row |= {metric: found.mean, f"{metric}_low": found.low, f"{metric}_high": found.high}
    return row


def counted(members: Sequence[RunRecord]) -> dict[str, str]:
    """Number of records and of images of each, and their protocol."""
    first, trainings = members[0], num_trainings(members)
    of = f" of {trainings} trainings" if trainings > 1 else ""
    return {"n": f"{len(members)} x {first.num_images:,}{of}", "protocol": protocol_of(first)}


def results_rows(
    records: Sequence[RunRecord],
    cells: Callable[[Sequence[RunRecord]], Mapping[str, Any]] = means,
) -> list[dict[str, Any]]:
    """One row a group of seeds; `settings` tells apart what the other columns do not."""
    rows, groups = [], group(records)
    several = any(num_trainings(members) > 1 for members in groups)
    for members in groups:
        first, settings = members[0], _settings(members[0], groups)
        row = {"model": first.model, "nfe": first.nfe, "protocol": protocol_of(first)}
        row |= {"num_images": first.num_images, "seeds": len({r.seed for r in members})}
        if several:
            row["training_seeds"] = num_trainings(members)
        rows.append(row | ({"settings": settings} if settings else {}) | {**cells(members)})
    return rows


def _settings(record: RunRecord, groups: Sequence[Sequence[RunRecord]]) -> str:
    """Differences of a record from those that agree with it in the fields `SHOWN`."""
    own = record.identity
    others = [members[0].identity for members in groups]
    alike = [other for other in others if all(other[key] == own[key] for key in SHOWN)]
    texts = []
    for key, value in own.items():
        if key != "seed" and any(other.get(key) != value for other in alike):
            text = times_in_words(value) if isinstance(value, tuple) else str(value)[:10]
            texts.append(f"{key.removeprefix('sampler.')} {text}")
    return ", ".join(texts)


def paper_rows(number: int, records: Sequence[RunRecord]) -> list[PaperRow]:
    """Rows of Table 1 or 2 as printed, repeated for each group of our records of their model.

    A row's verdicts are those of its own records. Ablations and models of the demo have no row.
    Images from elsewhere that are scored like ours follow in the order of FD.
    """
    absolute = [claim for claim in claims() if isinstance(claim, AbsoluteClaim)]
    models = recipes_of_rows()
    for (dataset, method), recipe in [*models.items()]:  # the teacher is no claim
        if method == "CD":
            models[dataset, "EDM"] = recipe.removesuffix("cd") + "edm"
    columns: tuple[Metric, ...] = ("fid", "is") if number == 1 else ("fid", "precision", "recall")
    full_size = [r for r in records if not is_demo(r) and not is_ablation(r)]
    rows, context = [], dict[str, RunRecord]()
    for row in result_rows(number):
        printed: dict[str, Any] = {"dataset": row.dataset} if number == 2 else {}
        printed |= {"method": row.method, "nfe": row.nfe}
        printed |= {METRICS[m]: str(row.scores.get(m, "")) for m in columns}
        model = models.get((row.dataset, row.method))
        made = [(r, t) for r in full_size if r.nfe == row.nfe and (t := trained(r))]
        groups = group(r for r, t in made if t.stands_for == model)
        if not groups:
            printed["ours"] = "not measured" if model else AS_PUBLISHED
            rows.append(PaperRow(printed, []))
        place = (row.dataset, row.method, row.nfe)
        of_row = [c for c in absolute if (c.dataset, c.method, c.setting.nfe) == place]
        for members in groups:
            first, settings = members[0], _settings(members[0], groups)
            answers = defaultdict(list)
            for c in (c for c in of_row if c.setting.metric in first.scores):
                answers[absolute_verdict(c, members).answer].append(METRICS[c.setting.metric])
            texts = [f"{answer} ({' and '.join(of)})" for answer, of in answers.items()]
            cells = {"ours": first.model + (f" ({settings})" if settings else "")}
            cells |= means(members, columns, "our ") | counted(members)
            cells |= {"verdict": ", ".join(texts if len(texts) > 1 else answers)}
            rows.append(PaperRow(printed | cells, members))
            context |= {a.id: a for a in anchors(first, records)}
    for a in context.values():
        cells = {"ours": a.model} | means([a], columns, "our ") | counted([a])
        rows.append(PaperRow(cells, [a]))
    return rows


def demo_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row a model of the demo (no ablations), and images from elsewhere scored like them."""
    models = [r for r in records if is_demo(r) and not is_ablation(r)]
    context = {a.id: a for r in models for a in anchors(r, records)}
    return results_rows([*models, *context.values()], partial(means, shown=("fid", "is")))


def claims_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row a claim with its verdict; `recipe` and `nfe` of an ordering are its better side's.

    `score` is the mean over seeds, `difference` what an ordering's better side gains (negative
    where it is worse), `low` and `high` are the ends of the 95 % interval of either.
    """
    rows = []
    for claim, verdict in zip(claims(), verdicts(records).values(), strict=True):
        absolute, mean = isinstance(claim, AbsoluteClaim), verdict.estimate
        row: dict[str, Any] = {"id": claim.id, "statement": verdict.statement(claim)}
        row |= {"dataset": claim.dataset, "basis": claim.basis, "verdict": str(verdict)}
        row |= dict.fromkeys(("score", "difference", "low", "high", "seeds"))
        if mean:
            row |= {"score" if absolute else "difference": mean.mean, "seeds": mean.n}
            row |= {"low": mean.low, "high": mean.high} if mean.n > 1 else {}
        row |= {"reason": verdict.reason, "note": "; ".join([*verdict.notes, *claim.notes])}
        row |= {"kind": claim.kind} | dict.fromkeys(("published", "margin", "better", "worse"))
        if isinstance(claim, AbsoluteClaim):
            setting = claim.setting
            row |= {"published": claim.printed.text, "margin": claim.margin}
        else:
            setting = claim.better
            row |= {"better": str(setting), "worse": "; ".join(map(str, claim.worse))}
        row |= {key: getattr(setting, key) for key in ("recipe", "nfe", "protocol", "metric")}
        rows.append(row | {"num_images": claim.num_images, "where": claim.where})
    return rows


def record_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row a record, those of one group beside each other."""
    groups = group(records)
    several = any(num_trainings(members) > 1 for members in groups)
    return [
        {"record": r.id, "model": r.model, "nfe": r.nfe, "seed": r.seed}
        | ({"training_seed": r.training_seed} if several else {})
        | {LABELS[m]: f"{r.scores[m]:.5g}" for m in LABELS if m in r.scores}
        | {"num_images": f"{r.num_images:,}", "protocol": protocol_of(r)}
        for members in groups
        for r in members
    ]


def model_rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One row a checkpoint trained here: its recipe and the cost of its training."""
    rows: dict[object, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: (r.model, r.training_seed)):
        training, recipe = trained(record), record.checkpoint and record.checkpoint.recipe
        if recipe and training and training.provenance:
            row: dict[str, Any] = {"model": record.model, "training_seed": record.training_seed}
            row |= {name: getattr(recipe, name) for name in RECIPE_COLUMNS}
            row |= {name: getattr(training, name) for name in TRAINING_COLUMNS}
            row["hours"] = f"{(training.duration_s or 0) / 3600:.2f}"
            row |= {"machine": training.provenance.cpu, "threads": training.provenance.threads}
            rows[record.identity["checkpoint"]] = row
    return list(rows.values())


def verdicts_by_scale(records: Sequence[RunRecord]) -> dict[str, dict[str, Verdict]]:
    """Verdicts by models of the paper's size ("paper") and of the demo, where there are such."""
    demo = [r for r in records if is_demo(r)]
    found = {"paper": verdicts([r for r in records if not is_demo(r)])}
    if demo:
        found["demo"] = verdicts([*demo, *(r for r in records if r.nfe is None)])
        if all(verdict.answer == "not measured" for verdict in found["paper"].values()):
            del found["paper"]
    return found


def counts(decided: Mapping[str, Verdict]) -> dict[str, dict[str, int]]:
    """Number of claims by kind and answer, those not measured last."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    answers = [(claim.kind, decided[claim.id].answer) for claim in claims()]
    for kind, answer in sorted(answers, key=lambda pair: pair[1] == "not measured"):
        found[kind][answer] += 1
    return {**found}


def verdict_table(decided: Mapping[str, Verdict], kind: str) -> Table:
    """One row a claim of a kind that has records; its reason and limits are notes.

    Those of a printed score are one note, which several scores of one model share.
    """
    found = [(c, decided[c.id]) for c in claims() if c.kind == kind and c.id in decided]
    found = [(claim, verdict) for claim, verdict in found if verdict.answer != "not measured"]
    datasets = {claim.dataset for claim, _ in found}
    rows = []
    for claim, verdict in found:
        row = {"statement": verdict.statement(claim)}
        row |= {"dataset": claim.dataset} if len(datasets) > 1 else {}
        row |= {"verdict": str(verdict)}
        row["difference" if kind == "ordering" else "score"] = str(verdict.estimate or "")
        notes = (verdict.reason, *verdict.notes, *claim.notes)
        rows.append((row, ["; ".join(notes)] if kind == "absolute" else notes))
    return _numbered(rows)


def own_table(records: Sequence[RunRecord]) -> Table:
    """One row a model that is none of the paper's, beside the paper's FIDs for its data set."""
    absolute = [c for c in claims() if isinstance(c, AbsoluteClaim) and c.setting.metric == "fid"]
    rows = []
    for members in group(record for record in records if is_own(record)):
        first, known = members[0], facts(members[0])
        images = str(known.get("dataset") or known["reference"])
        beside = [c for c in absolute if images.startswith(c.training_data.removesuffix("train"))]
        printed = [f"{c.method} {c.printed.text}" for c in beside if c.setting.nfe == first.nfe]
        notes = [f"the paper has no row of {images}"]
        if beside:
            sides, fields = ("in the paper", "here"), (*SCORED[:3], "dataset")
            compared = compare_facts(facts(beside[0]), known, fields, sides)
            notes = [*compared.different.values()]
            notes += [f"not known: {text}" for text in compared.unknown.values()]
        row = {"model": first.model, "nfe": first.nfe, **means(members, ("fid", "is"))}
        row |= {**counted(members), "paper's FID": ", ".join(printed)}
        rows.append((row | {"verdict": "not comparable" if notes else "comparable"}, notes))
    return _numbered(rows)


def _numbered(rows: Iterable[tuple[dict[str, Any], Iterable[str]]]) -> Table:
    """Rows with the numbers of their notes, and the notes, each once."""
    numbers: dict[str, int] = {}
    shown = []
    for row, notes in rows:
        own = [numbers.setdefault(note, len(numbers) + 1) for note in notes]
        shown.append(row | {"notes": ", ".join(map(str, own))})
    return shown, list(numbers)


def scale(records: Sequence[RunRecord]) -> dict[str, list[tuple[str, str]]]:
    """Names and FD by protocol, best first, of models and of images from elsewhere."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for mean, first in ranked(records):
        name = model_at(first.model, first.nfe) if first.nfe else first.model
        found[protocol_of(first)].append((name, str(mean)))
    return found
