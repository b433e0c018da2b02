"""REPORT.md, tables, figures and the page from results/records, and the check of them."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrepro.files import atomic_path
from cmrepro.paper import Ordering, claim
from cmrepro.records3 import FOLDER, RunRecord, read_records
from cmrepro.report import page
from cmrepro.report.figures import figures
from cmrepro.report.published import AS_PUBLISHED, later_work_rows, ledger_rows, paper_rows
from cmrepro.report.results import is_demo, results_rows
from cmrepro.report.tables import render
from cmrepro.report.verdicts import verdicts

if TYPE_CHECKING:
    import jinja2

TABLE_FILES = {"csv": "csv", "md": "md", "tex": "latex"}
FIGURES = Path("results/figures")
TRAINING = Path("results/training")

# What the demo does otherwise than the paper. Numbers come from the records, not from here.
DIFFERENCES = (
    "Network: an ADM U-Net on 2x2 patches, small enough for a laptop; the paper uses NCSN++.",
    "Training data: CIFAR-10 stored as JPEG (`cifar10-jpeg`), some 30 dB PSNR from the originals.",
    "Training length, batch and learning rate: see the models' table; the paper has Table 3.",
    "CD raises N by the N(k) that the paper has for CT only; the paper's CD keeps N fixed.",
    "Distance: the paper has LPIPS on VGG16. The bundled CD has l2; `efficientnet`, of CT, is "
    "LPIPS's form on EfficientNet-Lite1 without learned weights, plus 0.05 pseudo-Huber. That "
    "network is a relative of the one that scores, as VGG is of Inception: scores flatter models "
    "trained with it as they flatter the paper's.",
    "Protocol `embedded`: EfficientNet-Lite0 instead of Inception-v3, fewer images.",
    "The time of the second evaluation was chosen by the reported metric, as in the paper, but on "
    "a seed that is not reported (`cmrepro search-times`).",
)


def write_report(out: Path) -> list[Path]:
    """Write REPORT.md, tables, figures and the page from out/results/records.

    Pages of records that are gone are removed.

    Returns:
        What was written.

    Raises:
        ValueError: No records, one is refused, or a folder cannot be written.
    """
    texts = _texts(out)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for path in _surplus(texts, out):
        if path.suffix == ".html":
            path.unlink()
    return [out / name for name in texts]


def check_report(out: Path) -> list[str]:
    """What is out of step with the records in out/results/records, one line each.

    Raises:
        ValueError: No records, or one is refused.
    """
    texts = _texts(out)
    problems = [
        f"{name} {'differs from what the records give' if (out / name).exists() else 'is missing'}"
        for name, text in texts.items()
        if not (out / name).exists() or (out / name).read_bytes() != text.encode()
    ]
    gone = [path.relative_to(out).as_posix() for path in _surplus(texts, out)]
    return problems + [f"{name} belongs to no record" for name in gone]


def _surplus(texts: dict[str, str], out: Path) -> list[Path]:
    """Files of the page that the records do not give."""
    files = sorted(path for path in (out / page.SITE).rglob("*") if path.is_file())
    return [path for path in files if path.relative_to(out).as_posix() not in texts]


def _texts(out: Path) -> dict[str, str]:
    """Every file of the report by its name relative to the output folder."""
    records = read_records(out / FOLDER)
    content = _content(records, out)
    fill = _environment(out).get_template
    page_of_record = fill("record.html.j2")
    return {
        "REPORT.md": fill("report.md.j2").render(content),
        **{
            f"results/tables/{name}.{suffix}": _render(rows, format)
            for name, rows in content["tables"].items()
            for suffix, format in TABLE_FILES.items()
        },
        **{
            f"{FIGURES}/{name}.svg": text
            for drawn in content["figures"].values()
            for name, text in drawn.items()
        },
        f"{page.SITE}/index.html": fill("page.html.j2").render(content),
        **{
            f"{page.SITE}/{page.record_page(record)}": page_of_record.render(
                page.record_fields(record, records, out / FOLDER)
            )
            for record in records
        },
    }


def _environment(out: Path) -> "jinja2.Environment":
    """The templates; their filters say how rows, texts and grids look in each."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cmrepro.report", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]),
    )
    environment.filters |= {
        "md": lambda rows: _render(rows, "md"),
        "code": page.code,
        "columns": page.columns,
        "grid": lambda path: page.grid(out / path),
        "paper_table": page.paper_table,
        "plain_table": page.plain_table,
        "record_table": page.record_table,
    }
    return environment


def _render(rows: list[dict[str, Any]], format: str) -> str:
    """Rows in a format; methods that this suite does not have are set back."""
    return render(rows, format, [row.get("ours") == AS_PUBLISHED for row in rows])


def _content(records: list[RunRecord], out: Path) -> dict[str, Any]:
    """What the templates show: the same for REPORT.md and for the page."""
    paper = {f"table{number}": paper_rows(number, records) for number in (1, 2)}
    tables = {
        **{name: [row.cells for row in rows] for name, rows in paper.items()},
        "results": results_rows(records),
        "verdicts": _verdict_rows(records),
        "later_work": later_work_rows(),
        "deviations": ledger_rows(),
    }
    measured = [row for row in tables["verdicts"] if row["verdict"] != "not measured"]
    absolute = [row for row in measured if row["kind"] == "absolute"]
    return {
        "paper": paper,
        "tables": tables,
        "ours": [row for row in tables["table1"] if row["ours"] != AS_PUBLISHED],
        "summary": _summary(tables["verdicts"]),
        "orderings": [row for row in measured if row["kind"] == "ordering"],
        "orderings_here": _orderings_here(tables["verdicts"]),
        "absolute": absolute,
        "by_reason": _by_reason(absolute),
        "records": records,
        "runs": _runs(records),
        "models": _model_rows(records),
        "table3": page.marked_table3(),
        "figures": figures(records, out / TRAINING),
        "samples": _samples(records, out),
        "real": page.REAL if (out / page.REAL).exists() else None,
        "context": ", ".join(
            f"{r.model} {r.scores['fid']:.1f} ({r.protocol['name']})"
            for r in records
            if r.nfe is None and "fid" in r.scores
        ),
        "demo": any(is_demo(r) for r in records),
        "differences": DIFFERENCES,
        "warnings": sorted({w for r in records for w in r.warnings}),
    }


def _verdict_rows(records: list[RunRecord]) -> list[dict[str, Any]]:
    return [
        {
            "claim": verdict.claim_id,
            "kind": claim(verdict.claim_id).kind,
            "verdict": verdict.answer,
            "reason": verdict.reason,
        }
        for verdict in verdicts(records)
    ]


def _summary(rows: list[dict[str, Any]]) -> str:
    """How many claims have which verdict, in a sentence a kind."""
    lines = []
    for kind, what in {
        "ordering": "Orderings and ablations",
        "absolute": "Printed scores",
    }.items():
        counts = Counter(row["verdict"] for row in rows if row["kind"] == kind)
        each = ", ".join(f"{verdict} {n}" for verdict, n in counts.most_common())
        lines.append(f"{what} ({counts.total()}): {each}.")
    return " ".join(lines)


def _orderings_here(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The orderings of each data set of which any is measured, in the paper's words."""
    found = {claimed: row for row in rows if isinstance(claimed := claim(row["claim"]), Ordering)}
    here = {c.dataset for c, row in found.items() if row["verdict"] != "not measured"}
    return [
        {"statement": c.statement, **{key: row[key] for key in ("verdict", "reason", "claim")}}
        for c, row in found.items()
        if c.dataset in here
    ]


def _by_reason(rows: list[dict[str, Any]]) -> list[tuple[tuple[str, str], list[str]]]:
    """Claims by verdict and reason."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        found[row["verdict"], row["reason"]].append(row["claim"])
    return sorted(found.items())


def _runs(records: list[RunRecord]) -> list[tuple[str, str]]:
    """What the records say of how they were made, one line where all agree."""

    def distinct(key: str) -> str:
        return "; ".join(sorted({f"{r.provenance[key]}" for r in records}))

    commits = Counter(
        (r.provenance["commit"] or "of an installed package")[:10]
        + (" (changed)" if r.provenance["dirty"] else "")
        for r in records
    )
    sampling = {
        (r.model, r.seed): r.durations_s["sampling_all_steps"]
        for r in records
        if "sampling_all_steps" in r.durations_s
    }
    gpus = distinct("gpu").replace("None", "no GPU")
    scoring = sum(r.durations_s["scoring"] for r in records)
    packages = {
        f"{name} {version}" for r in records for name, version in r.provenance["packages"].items()
    }
    commands = defaultdict(set)
    for record in records:
        command = record.provenance["command"]
        commands[" ".join(command.split()[:2])].add(command)
    return [
        (
            "command",
            "; ".join(
                f"`{min(own)}`"
                if len(own) == 1
                else f"`{name} …`, {len(own)} of them (see records)"
                for name, own in sorted(commands.items())
            ),
        ),
        (
            "cmrepro",
            f"{distinct('cmrepro')}, commit "
            + ", ".join(f"{name} ({n} records)" for name, n in sorted(commits.items())),
        ),
        ("machine", f"{distinct('cpu')}; {distinct('platform')}; {gpus}"),
        ("Python", f"{distinct('python')}; {', '.join(sorted(packages))}"),
        (
            "sampling",
            f"{sum(sampling.values()):.0f} s for {len(sampling)} runs of the main job, "
            "all steps at once",
        ),
        ("scoring", f"{scoring:.0f} s for all {len(records)} records"),
    ]


def _samples(records: list[RunRecord], out: Path) -> list[tuple[str, list[tuple[int, str]]]]:
    """Sample grids that lie in results/samples, by model and evaluations."""
    grids: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for model, nfe in sorted({(r.model, r.nfe) for r in records if r.nfe is not None}):
        path = f"results/samples/{model}_nfe{nfe}.png"
        if (out / path).exists():
            grids[model].append((nfe, path))
    return list(grids.items())


def _model_rows(records: list[RunRecord]) -> list[dict[str, Any]]:
    """One row a checkpoint: how it was trained and what that cost."""
    rows: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: r.model):
        recipe, origin = record.checkpoint.get("recipe"), record.checkpoint.get("origin")
        if not recipe or not origin:
            continue
        threads = origin["threads"]
        scales = recipe["num_scales"]
        if recipe["s0"]:
            schedule_steps = recipe["schedule_steps"] or recipe["total_steps"]
            scales = f"N(k), {recipe['s0']} to {recipe['s1'] + 1} in {schedule_steps:,} steps"
        rows[record.model] = {
            "model": record.model,
            "method": recipe["method"].upper(),
            "N": scales,
            "mu": _mu(recipe),
            "distance": recipe["distance"],
            "solver": recipe["solver"],
            "batch": recipe["batch_size"],
            "learning rate": f"{recipe['learning_rate']:g}",
            "steps": origin["steps"],
            "images seen": f"{origin['images_seen']:,}",
            "hours": f"{origin['duration_s'] / 3600:.2f}",
            "trained on": f"{origin['data']}, {origin['cpu']}, "
            f"{threads} thread{'s' * (threads > 1)}",
            "weights": origin["weights"],
        }
    return list(rows.values())


def _mu(recipe: dict[str, Any]) -> str | None:
    """Decay of the target network: fixed, by a schedule, or none for the teacher."""
    if recipe["mu0"] is not None:
        return f"mu(k) from {recipe['mu0']:g}"
    return None if recipe["target_ema"] is None else f"{recipe['target_ema']:g}"
