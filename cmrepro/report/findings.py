"""What was found: the headline, verdicts with numbered notes, scores in order, own models."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmrepro.paper import AbsoluteClaim, claims
from cmrepro.records import RunRecord
from cmrepro.report.results import means, own_models, protocol_of, ranked
from cmrepro.report.verdicts import Verdict

Table = tuple[list[dict[str, Any]], list[str]]  # rows that name their notes by number, the notes
KINDS = {"ordering": "orderings", "absolute": "printed scores"}
PLURAL = {
    "holds at demo scale": "hold at demo scale",
    "does not hold at demo scale": "do not hold at demo scale",
}
UNTESTED = ("not measured", "not comparable")  # answers that test nothing


def headline(decided: Mapping[str, Verdict]) -> str:
    """Number of claims that records test, in words."""
    tested = Counter(c.kind for c in claims() if decided[c.id].answer not in UNTESTED)
    total = Counter(claim.kind for claim in claims())
    orderings = f"{tested['ordering']} ordering{'s' * (tested['ordering'] != 1)} tested"
    return f"{orderings}, {tested['absolute']} of {total['absolute']} printed scores measured"


def counts(decided: Mapping[str, Verdict]) -> str:
    """Number of claims by kind and answer, in a line."""
    parts = []
    for kind, name in KINDS.items():
        found = Counter(decided[claim.id].answer for claim in claims() if claim.kind == kind)
        known = sorted(found.items(), key=lambda item: (item[0] == "not measured", -item[1]))
        each = ", ".join(f"{n} {a if n == 1 else PLURAL.get(a, a)}" for a, n in known)
        parts.append(f"{found.total()} {name}: {each}.")
    return " ".join(parts)


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
    """One row a model of one's own, beside the FIDs that the paper prints for its data set."""
    rows = []
    for own in own_models(records):
        first = own.records[0]
        printed = [
            f"{claim.method} {claim.printed.text}"
            for claim in claims()
            if isinstance(claim, AbsoluteClaim) and claim.dataset == own.dataset
            if (claim.setting.nfe, claim.setting.metric) == (first.nfe, "fid")
        ]
        row = {"model": first.model, "nfe": first.nfe, **means(own.records, ("fid", "is"))}
        row |= {"n": f"{len(own.records)} x {first.num_images:,}", "protocol": protocol_of(first)}
        row |= {"dataset": own.dataset, "paper's FID": ", ".join(printed)}
        row["verdict"] = "not comparable" if own.agreement.different else "comparable"
        rows.append((row, (*own.agreement.different.values(), *own.agreement.unknown.values())))
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
