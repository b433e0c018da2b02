"""REPORT.md, tables, figures and the page from results/records, and the check of them."""

import functools
import html
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cmrepro.data.grids import REAL
from cmrepro.files import atomic_path, sha256
from cmrepro.paper import deviations
from cmrepro.records import FOLDER, THEOREMS, RunRecord, TheoremRun, read_records
from cmrepro.report import results
from cmrepro.report.comparability import anchors
from cmrepro.report.tables import LABELS, later_work_rows, render
from cmrepro.report.theorems import theorem_rows
from cmrepro.schema import flat, read_json, to_builtins

TABLE_FILES = {"csv": "csv", "md": "md", "tex": "latex"}
SITE = Path("results/site")
PAGES = f"{SITE}/records/*_{'[0-9a-f]' * 8}.html"  # of records; others there are foreign
MARK = "Written by `cmrepro report`"
# The package's checkpoints; their reader needs torch, which the report does without.
BUNDLED = Path(__file__).parents[1] / "checkpoints" / "bundled"


def write_report(out: Path, overwrite: bool = False) -> list[Path]:
    """Write REPORT.md, tables, figures and the page from out/results/records."""
    require_own_report(out, overwrite)
    texts, surplus = _texts(out)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name in surplus:  # of records and training logs that are gone
        (out / name).unlink()
    return [out / name for name in texts]


def require_own_report(out: Path, overwrite: bool) -> None:
    """Refuse a REPORT.md that is there and was not written by `write_report`."""
    report = out / "REPORT.md"
    if report.is_file() and not overwrite and MARK not in report.read_text("utf-8", "replace"):
        raise ValueError(f"{report} is not by cmrepro; choose another folder, or overwrite it")


def check_report(out: Path) -> tuple[list[str], str]:
    """One line a file that differs, and a remark on figures of another matplotlib, or ""."""
    import matplotlib

    drawn_by = f"Matplotlib v{matplotlib.__version__}, "
    pixels = re.compile(r'(?<=;base64,)[^"]*')  # compressed otherwise by another zlib
    problems, other = [], 0
    texts, surplus = _texts(out)
    for name, text in texts.items():
        if not (out / name).exists():
            problems.append(f"{name} is missing")
            continue
        found = (out / name).read_text(encoding="utf-8")
        if pixels.sub("", found) == pixels.sub("", text):
            continue
        if name.endswith(".svg") and drawn_by not in found:
            other += 1
        else:
            problems.append(f"{name} differs from the records")
    problems += [f"{name} has no record or training log" for name in surplus]
    return problems, f"figures of another matplotlib are not compared: {other}" if other else ""


def _texts(out: Path) -> tuple[dict[str, str], list[str]]:
    """Every file of the report by its name relative to `out`, and pages and figures left over."""
    records = read_records(out / FOLDER)
    content = _content(records, out)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cmrepro.report", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]),
    )
    environment.filters["md"] = functools.partial(render, format="md")
    environment.filters["code"] = lambda text: Markup(  # HTML of a text with Markdown's `code`
        re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    )
    names = {"REPORT.md": "report.md.j2", f"{SITE}/index.html": "page.html.j2"}
    texts = {name: environment.get_template(of).render(content) for name, of in names.items()}
    for name, rows in content["tables"].items():
        for suffix, format in TABLE_FILES.items():
            texts[f"results/tables/{name}.{suffix}"] = render(rows, format)
    for drawn in content["figures"].values():
        texts |= {f"results/figures/{name}.svg": text for name, text in drawn.items()}
    record_page = environment.get_template("record.html.j2")
    for record in records:
        bundled = BUNDLED / f"{record.model}.safetensors"
        checksum = record.checkpoint and record.checkpoint.sha256
        texts[f"{SITE}/records/{record.id}.html"] = record_page.render(
            record=record,
            labels=LABELS,
            anchors=anchors(record, records),
            fields=flat({k: v for k, v in to_builtins(record).items() if isinstance(v, dict)}),
            file_sha256=sha256(out / FOLDER / f"{record.id}.json"),
            bundled=bundled.is_file() and sha256(bundled) == checksum,
        )
    figures_of = (out.glob(f"results/figures/{kind}_*.svg") for kind in content["figures"])
    found = [*out.glob(PAGES), *filter(_is_own_figure, itertools.chain(*figures_of))]
    written = {out / name for name in texts}
    return texts, sorted(p.relative_to(out).as_posix() for p in found if p not in written)


def _is_own_figure(path: Path) -> bool:
    """True for an SVG of matplotlib without a date; those that others draw have one."""
    text = path.read_text("utf-8", "replace")
    return "Matplotlib v" in text and "<dc:date>" not in text


def _content(records: list[RunRecord], out: Path) -> dict[str, Any]:
    """Values of the templates of REPORT.md and of the page."""
    from cmrepro.report.figures import figures  # other commands do without matplotlib

    decided = results.verdicts_by_scale(records)
    paper = {f"table{number}": results.paper_rows(number, records) for number in (1, 2)}
    tables = {name: [row.cells for row in rows] for name, rows in paper.items()}
    tables |= {"results": results.results_rows(records), "verdicts": results.claims_rows(records)}
    tables |= {"later_work": later_work_rows(), "models": results.model_rows(records)}
    ledger = ("id", "item", "paper", "released", "action")
    ours = [row for row in deviations() if row.group in ("table3", "training", "evaluation")]
    tables["deviations"] = [{name: getattr(row, name) for name in ledger} for row in ours]
    checks = read_json(TheoremRun, out / THEOREMS).checks if (out / THEOREMS).is_file() else ()
    if theorems := theorem_rows(checks):
        tables["theorems"] = theorems
    samples = {"real images": str(REAL)} if (out / REAL).exists() else {}
    for r in sorted(records, key=lambda r: (r.model, r.nfe or 0, r.training_seed)):
        if r.nfe is not None and (out / (path := f"results/samples/{r.grid_name}")).exists():
            training = f", training seed {r.training_seed}" if r.training_seed else ""
            samples[results.model_at(r.model, r.nfe) + training] = path
    return {
        "orderings": {k: results.verdict_table(v, "ordering") for k, v in decided.items()},
        "printed": results.verdict_table(decided.get("paper", {}), "absolute"),
        "counts": {scale: results.counts(found) for scale, found in decided.items()},
        "scale": results.scale(records),
        "paper": paper,
        "measured": {k: [row.cells for row in rows if row.records] for k, rows in paper.items()},
        "yours": results.own_table(records),
        "tables": tables,
        "records": results.record_rows(records),
        "runs": _runs(records),
        "figures": figures(records, out / "results", checks),
        "theorems": theorems,
        "editing": {
            path.stem: path.relative_to(out).as_posix()
            for path in sorted((out / "results/editing").glob("*.png"))
        },
        "samples": samples,
        "real": "real images" in samples,
        "context": any(r.nfe is None for r in records),
        "demo": results.demo_rows(records),
        "warnings": sorted({w for r in records for w in r.warnings}),
    }


def _runs(records: Sequence[RunRecord]) -> dict[str, str]:
    """Commands, code, hardware and time of the records."""
    sources = [record.provenance for record in records]
    fields = ("cmrepro", "commit", "dirty", "python", "platform", "cpu", "gpu")
    found = {name: {str(getattr(source, name)) for source in sources} for name in fields}
    found["packages"] = {f"{name} {v}" for s in sources for name, v in s.packages.items()}
    found["command"] = {f"`{' '.join(s.command.split()[:2])} …`" for s in sources}
    key = "sampling_all_steps"
    timed = [record for record in records if key in record.durations_s]  # sampled in one go
    sampling = {(r.checkpoint and r.checkpoint.sha256, r.seed): r.durations_s[key] for r in timed}
    scoring = sum(r.durations_s.get("scoring", 0) for r in records)
    seconds = {"sampling": sum(sampling.values()), "scoring": scoring}
    texts = {name: ", ".join(sorted(values)) for name, values in found.items()}
    return texts | {name: f"{time:.0f} s" for name, time in seconds.items() if time}
