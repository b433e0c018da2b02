"""What was found: the headline, verdicts with numbered notes, scores in order, own models."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmrepro.paper import AbsoluteClaim, claims
from cmrepro.records import RunRecord
from cmrepro.report.comparability import SCORED, compare_facts, facts, group, is_own
from cmrepro.report.results import counted_means, protocol_of, ranked
from cmrepro.report.verdicts import Verdict

Table = tuple[list[dict[str, Any]], list[str]]  # rows that name their notes by number, the notes


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
    found = [(c, decided[c.id]) for c in claims() if c.kind == kind]
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
        images = str(known["dataset"] or known["reference"])
        beside = [c for c in absolute if images.startswith(c.training_data.removesuffix("train"))]
        printed = [f"{c.method} {c.printed.text}" for c in beside if c.setting.nfe == first.nfe]
        notes = [f"the paper has no row of {images}"]
        if beside:
            sides, fields = ("in the paper", "here"), (*SCORED[:3], "dataset")
            compared = compare_facts(facts(beside[0]), known, fields, sides)
            notes = [*compared.different.values()]
            notes += [f"not known: {text}" for text in compared.unknown.values()]
        row = {"model": first.model, "nfe": first.nfe, **counted_means(members, ("fid", "is"))}
        row |= {"paper's FID": ", ".join(printed)}
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
        steps = f", {first.nfe} step{'s' * (first.nfe != 1)}" if first.nfe else ""
        found[protocol_of(first)].append((first.model + steps, str(mean)))
    return found
