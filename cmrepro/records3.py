"""The record of one run: what was sampled, how it was scored, what came out (standard library).

One run is one JSON file. What it must hold is in record.schema.json (JSON Schema, draft 2020-12):
a record of another schema, with a missing key, an impossible score or a malformed checksum is
refused.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from cmrepro.files import atomic_path
from cmrepro.schema import unknown

SCHEMA = "cmrepro-record-3"
FOLDER = Path("results/records")
# In the order in which two runs may part.
HASHES = ("noise", "labels", "images", "features")
# Other arithmetic moves the last bits of features; a score may move by no more, relatively.
RELATIVE_TOLERANCE = 1e-4
# What two runs of the same settings may differ in.
OF_THE_RUN = ("provenance", "durations_s")


@dataclass(frozen=True)
class RunRecord:
    """One sample set under one protocol.

    Attributes:
        model: Name of the checkpoint, or of the sample set where that is all that is known.
        nfe: Network evaluations an image; None for images that no network here made.
        seed: Of the noise; None likewise.
        num_images: Images scored.
        protocol: Every field of the protocol, its name and version among them.
        reference: Name, checksum and data set of the reference statistics.
        scores: Value by metric.
        uncertainty: How far the scores of this one set can be trusted, where it was asked for:
            `intervals` (95 %, bootstrap over images) by metric, `fid_by_num_images` and
            `fid_infinity`, its extrapolation.
        warnings: What limits the scores' meaning, one sentence each.
        checkpoint: File name, checksum, network, recipe and origin; empty without one.
        sampler: Algorithm, times, how images became uint8, how many were sampled and on which
            device; empty for foreign images.
        comparable: What must agree for two records to be compared, None where it is not known:
            `scale` ("demo" or "paper": whose recipes the model was trained by), network, data set,
            images seen, global batch, initialisation, which average of the weights, training
            steps, protocol version, and `selection`: its text, and of that the rule by which
            checkpoint and times were chosen, the metric, the seeds and the images of each.
        hashes: SHA-256 of the noise and class labels used (of all images sampled), and of the
            images and features scored (`HASHES`).
        provenance: Command, commit, versions, machine, device of the scoring.
        durations_s: Seconds by stage.
        schema: `SCHEMA`.

    Raises:
        ValueError: Another schema, no images, or an impossible score.
    """

    model: str
    nfe: int | None
    seed: int | None
    num_images: int
    protocol: dict[str, Any]
    reference: dict[str, Any]
    scores: dict[str, float]
    uncertainty: dict[str, Any]
    warnings: list[str]
    checkpoint: dict[str, Any]
    sampler: dict[str, Any]
    comparable: dict[str, Any]
    hashes: dict[str, str]
    provenance: dict[str, Any]
    durations_s: dict[str, float]
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        for key in ("schema", "num_images", "scores"):
            for problem in _problems(getattr(self, key), record_schema()["properties"][key], key):
                raise ValueError(problem)

    @property
    def id(self) -> str:
        """File name without ending: model, evaluations, protocol, count, seed."""
        parts = [self.model, f"{self.protocol['name']}-v{self.protocol['version']}"]
        if self.nfe is not None:
            parts.insert(1, f"nfe{self.nfe}")
        parts.append(f"n{self.num_images}")
        if self.seed is not None:
            parts.append(f"seed{self.seed}")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))


@functools.cache
def record_schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    text = resources.files(__package__).joinpath("record.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def _is(value: object, kind: str) -> bool:
    """Whether a value is of a type of JSON; Python's booleans are integers, JSON's are not."""
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _problems(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    """Where a value breaks a schema, one line each; the keywords that record.schema.json uses.

    Stricter than JSON Schema: 2.0 is no integer, and NaN or infinity is no number anywhere.
    """
    if "$ref" in schema:
        schema = record_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = schema.get("type", [*_TYPES])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    allowed = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    got = f"got {where} = {json.dumps(value, default=repr)[:80]}, allowed"
    if not any(_is(value, kind) for kind in kinds):
        yield f"{got} is {' or '.join(kinds)}"
    elif value not in allowed:
        yield f"{got} is {' or '.join(map(json.dumps, allowed))}"
    elif isinstance(value, str) and not re.fullmatch(schema.get("pattern", "(?s).*"), value):
        yield f"{got} is {schema.get('description', schema['pattern'])}"
    elif _is(value, "number"):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not (low <= value <= high and abs(value) != math.inf):  # which NaN is not either
            yield f"{got} is a number from {low:g} to {high:g}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{where}[{index}]")
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        # `anyOf` says: empty, or with these keys.
        forms = schema.get("anyOf", []) if value else []
        required = {key for form in (schema, *forms) for key in form.get("required", ())}
        inside = f" in {where}" if where else ""
        if missing := sorted(required - value.keys()):
            yield f"missing keys{inside}: {', '.join(missing)}"
        if others is False and (surplus := sorted(value.keys() - known.keys())):
            yield f"unknown keys{inside}: {', '.join(surplus)}; known: {', '.join(known)}"
        for key, item in value.items():
            if key in known or others is not False:
                path = f"{where}.{key}" if where else key
                yield from _problems(item, known.get(key, others), path)


def _fields_problems(fields: object) -> list[str]:
    """Why a JSON value is no record of `SCHEMA`, one line each; of another schema only that."""
    if not isinstance(fields, dict):
        return ["it is no JSON object"]
    if fields.get("schema") != SCHEMA:
        return [
            f'got schema = {json.dumps(fields.get("schema"))}, allowed is "{SCHEMA}"; run the '
            "evaluation again, or read it with the cmrepro that wrote it"
        ]
    return list(_problems(fields, record_schema(), ""))


def record_problems(path: Path) -> list[str]:
    """Why a file holds no record of `SCHEMA`, one line each."""
    if path.is_dir():
        return ["no records in this folder; make some with 'cmrepro reproduce cifar10'"]
    try:
        return _fields_problems(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ["no such file"]
    except OSError as error:
        return [f"it cannot be read ({error.strerror})"]
    except ValueError as error:
        return [f"it is no JSON ({error}); records are the .json files of {FOLDER}"]


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `record` to folder/ID.json and return that path.

    Raises:
        ValueError: It breaks the schema, or the folder cannot be written.
    """
    path = folder / f"{record.id}.json"
    text = json.dumps(asdict(record), indent=1, sort_keys=True)
    if problems := _fields_problems(json.loads(text)):
        raise ValueError(f"{record.id} is not a record: {'; '.join(problems)}")
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_record(path: Path) -> RunRecord:
    """The record in a file.

    Raises:
        ValueError: Not JSON, or it breaks the schema: keys missing or unknown, another version,
            an impossible score, a malformed checksum.
    """
    if problems := record_problems(path):
        more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
        raise ValueError(f"{path} is not a record: {problems[0]}{more}")
    return RunRecord(**json.loads(path.read_text(encoding="utf-8")))


def record_files(paths: Iterable[Path]) -> list[Path]:
    """Files and the .json files of folders, each once, in order.

    A folder without any stands for itself, and what is not there too: neither is a record.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.json")) or [path]
    return list(dict.fromkeys(files))


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a folder, in the order of their file names.

    Raises:
        ValueError: None there, or one is refused, or a file's name is not its record's.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"no records in {folder}; make some with 'cmrepro reproduce cifar10'")
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if path.stem != record.id:
            raise ValueError(f"{path} holds the record '{record.id}'; rename the file")
    return records


def find_record(name: str | Path) -> RunRecord:
    """The record in a file, or of an id in ./results/records.

    Raises:
        ValueError: Neither, or it is refused.
    """
    path = Path(name)
    if path.is_file():
        return read_record(path)
    known = {file.stem: file for file in FOLDER.glob("*.json")}
    if str(name) not in known:
        kind = f"record (no such file, nor in {FOLDER})"
        raise ValueError(unknown(kind, str(name), known, f"ls {FOLDER}"))
    return read_record(known[str(name)])


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as one: {"protocol": {"name": x}} becomes {"protocol.name": x}."""
    leaves: dict[str, Any] = {}
    for key, value in fields.items():
        nested = isinstance(value, Mapping)
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def differences(one: RunRecord, other: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Both values of every flat key in which two records differ; None where a key is missing."""
    first, second = flat(asdict(one)), flat(asdict(other))
    pairs = {key: (first.get(key), second.get(key)) for key in first | second}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def merge_records(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Write records from elsewhere into a folder, each once and under its id.

    Of runs that agree in all but provenance and durations the first one counts; what already lies
    in the folder comes before all.

    Returns:
        What was written.

    Raises:
        ValueError: Two records of one id contradict each other, one is refused, or there is none.
    """
    kept: dict[str, tuple[Path, RunRecord]] = {}
    new = record_files(paths)
    for path in [*sorted(folder.glob("*.json")), *new]:
        record = read_record(path)
        first_path, first = kept.setdefault(record.id, (path, record))
        found = [k for k in differences(first, record) if k.partition(".")[0] not in OF_THE_RUN]
        if found:
            raise ValueError(
                f"{first_path} and {path} are both '{record.id}' and differ in "
                f"{', '.join(found)}; 'cmrepro compare' explains it: keep one"
            )
    return [
        write_record(record, folder)
        for path, record in kept.values()
        if not (folder / f"{record.id}.json").is_file()
    ]
