"""REPORT.md, tables and figures from results/records, and the check that they are in step."""

from collections import defaultdict
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from cmrepro.files import atomic_path
from cmrepro.paper import AbsoluteClaim, claims
from cmrepro.records import RunRecord, read_records
from cmrepro.report.figures import checksum, figure_checksum, score_figure, score_series
from cmrepro.report.published import AS_PUBLISHED, later_work_frame, ledger_frame, paper_frame
from cmrepro.report.results import is_demo, results_frame
from cmrepro.report.tables import Format, render
from cmrepro.report.verdicts import verdicts

TABLE_FILES: dict[str, Format] = {"csv": "csv", "md": "md", "tex": "latex"}
FIGURE = Path("results/figures/score_against_steps.png")

# What the demo does otherwise than the paper. Numbers come from the records, not from here.
DIFFERENCES = (
    "Network: an ADM U-Net on 2x2 patches, small enough for a laptop; the paper uses NCSN++.",
    "Training data: CIFAR-10 stored as JPEG (`cifar10-jpeg`), some 30 dB PSNR from the originals.",
    "Training length, batch and learning rate: see the models' table; the paper has Table 3.",
    "CD raises N by the N(k) that the paper has for CT only; the paper's CD keeps N fixed.",
    "Distance: LPIPS's form on EfficientNet-Lite1 without learned weights, plus a little "
    "pseudo-Huber, where the paper has LPIPS on VGG16. That network is a relative of the one that "
    "scores, as VGG is of Inception: scores flatter these models as they flatter the paper's.",
    "Protocol `embedded`: EfficientNet-Lite0 instead of Inception-v3, fewer images.",
    "The time of the second evaluation was chosen by the reported metric, as in the paper, but on "
    "a seed that is not reported and on fewer images (`cmrepro search-times`).",
)


def write_report(out: Path) -> list[Path]:
    """Write REPORT.md, tables and figures from out/results/records.

    Returns:
        What was written.

    Raises:
        ValueError: No records, or one is refused.
    """
    records = read_records(out / "results" / "records")
    texts = _texts(records, out)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    score_figure(score_series(records), out / FIGURE)
    return [out / name for name in texts] + [out / FIGURE]


def check_report(out: Path) -> list[str]:
    """What is out of step with the records in out/results/records, one line each.

    Raises:
        ValueError: No records, or one is refused.
    """
    records = read_records(out / "results" / "records")
    problems = [
        f"{name} {'differs from what the records give' if (out / name).exists() else 'is missing'}"
        for name, text in _texts(records, out).items()
        if not (out / name).exists() or (out / name).read_text(encoding="utf-8") != text
    ]
    if figure_checksum(out / FIGURE) != checksum(score_series(records)):
        problems.append(f"{FIGURE} does not show the records")
    return problems


def _texts(records: list[RunRecord], out: Path) -> dict[str, str]:
    """Text files of the report by name relative to the output folder."""
    import jinja2

    frames = {
        "table1": paper_frame(1, records),
        "table2": paper_frame(2, records),
        "results": results_frame(records),
        "verdicts": _verdicts_frame(records),
        "later_work": later_work_frame(),
        "deviations": ledger_frame(),
    }
    template = resources.files(__package__).joinpath("report.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    is_ordering = frames["verdicts"]["kind"] == "ordering"
    measured = frames["verdicts"]["verdict"] != "not measured"
    report = environment.from_string(template).render(
        runs=_runs(records),
        ours=render(frames["table1"][~_as_published(frames["table1"])], "md"),
        table1=render(frames["table1"], "md", _as_published(frames["table1"])),
        table2=render(frames["table2"], "md", _as_published(frames["table2"])),
        later_work=render(frames["later_work"], "md"),
        deviations=render(frames["deviations"], "md"),
        orderings=render(
            frames["verdicts"][is_ordering & measured][["claim", "verdict", "reason"]], "md"
        ),
        absolute=frames["verdicts"][~is_ordering & measured]
        .groupby(["verdict", "reason"])["claim"]
        .agg(list),
        samples=_samples(records, out),
        results=render(frames["results"], "md"),
        context=any(r.nfe is None for r in records),
        demo=any(is_demo(r) for r in records),
        models=render(_models_frame(records), "md"),
        differences=DIFFERENCES,
        warnings=sorted({w for r in records for w in r.warnings}),
    )
    tables = {
        f"results/tables/{name}.{suffix}": render(frame, format, _as_published(frame))
        for name, frame in frames.items()
        for suffix, format in TABLE_FILES.items()
    }
    return {"REPORT.md": report, **tables}


def _as_published(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows of the paper's tables whose methods this suite does not have."""
    if "ours" not in frame:
        return pd.Series(False, index=frame.index)
    return frame["ours"] == AS_PUBLISHED


def _verdicts_frame(records: list[RunRecord]) -> pd.DataFrame:
    by_id = {claim.id: claim for claim in claims()}
    rows = [
        {
            "claim": verdict.claim_id,
            "kind": "absolute"
            if isinstance(by_id[verdict.claim_id], AbsoluteClaim)
            else "ordering",
            "verdict": verdict.answer,
            "reason": verdict.reason,
        }
        for verdict in verdicts(records)
    ]
    return pd.DataFrame(rows)


def _runs(records: list[RunRecord]) -> list[tuple[str, str]]:
    """What the records say of how they were made, one line where all agree."""

    def distinct(key: str) -> str:
        return "; ".join(sorted({f"{r.provenance[key]}" for r in records}))

    commits = {
        (r.provenance["commit"] or "of an installed package")[:10]
        + (" (changed)" if r.provenance["dirty"] else "")
        for r in records
    }
    sampling = {
        (r.model, r.seed): r.durations_s["sampling_all_steps"]
        for r in records
        if "sampling_all_steps" in r.durations_s
    }
    scoring = sum(r.durations_s["scoring"] for r in records)
    packages = {
        f"{name} {version}" for r in records for name, version in r.provenance["packages"].items()
    }
    return [
        (
            "command",
            "; ".join(f"`{c}`" for c in sorted({r.provenance["command"] for r in records})),
        ),
        ("cmrepro", f"{distinct('cmrepro')}, commit {', '.join(sorted(commits))}"),
        ("machine", f"{distinct('cpu')}; {distinct('platform')}; GPU: {distinct('gpu')}"),
        ("Python", f"{distinct('python')}; {', '.join(sorted(packages))}"),
        (
            "sampling",
            f"{sum(sampling.values()):.0f} s for {len(sampling)} runs, all steps at once",
        ),
        ("scoring", f"{scoring:.0f} s for {len(records)} sample sets"),
    ]


def _samples(records: list[RunRecord], out: Path) -> list[tuple[str, list[tuple[int, str]]]]:
    """Sample grids that lie in results/samples, by model and evaluations."""
    grids: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for model, nfe in sorted({(r.model, r.nfe) for r in records if r.nfe is not None}):
        path = f"results/samples/{model}_nfe{nfe}.png"
        if (out / path).exists():
            grids[model].append((nfe, path))
    return list(grids.items())


def _models_frame(records: list[RunRecord]) -> pd.DataFrame:
    """One row a checkpoint: how it was trained and what that cost."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        recipe, origin = record.checkpoint.get("recipe"), record.checkpoint.get("origin")
        if not recipe or not origin:
            continue
        scales = recipe["num_scales"]
        if recipe["s0"]:
            schedule_steps = recipe["schedule_steps"] or recipe["total_steps"]
            scales = f"N(k), {recipe['s0']} to {recipe['s1'] + 1} in {schedule_steps:,} steps"
        rows[record.model] = {
            "model": record.model,
            "method": recipe["method"].upper(),
            "N": scales,
            "distance": recipe["distance"],
            "batch": recipe["batch_size"],
            "learning rate": f"{recipe['learning_rate']:g}",
            "steps": origin["steps"],
            "images seen": f"{origin['images_seen']:,}",
            "hours": f"{origin['duration_s'] / 3600:.2f}",
            "trained on": f"{origin['data']}, {origin['cpu']}, {origin['threads']} threads",
            "weights": origin["weights"],
        }
    return pd.DataFrame(list(rows.values()))
