"""Like with like: what must agree before two scores are set side by side.

A claim of the paper and a record are brought to the same fields (`facts`); `Agreement` names those
that differ and those that are not known. Verdicts, tables and `cmrepro compare` use it alike.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cmrepro.paper import ABLATED, AbsoluteClaim, Setting, ablated_fields, claims
from cmrepro.records import RunRecord, TrainingRun
from cmrepro.schema import Struct, to_builtins
from cmrepro.settings import Metric

Value = str | int | float | bool | None
Facts = dict[str, Value]

SAMPLING = ("times", "to_uint8", "clip_denoised")
SCORING = ("protocol", "reference", "num_images")
SCORED = (*SCORING, "scale", "dataset", "network")
TRAINING = ("images_seen", "batch_size", "total_steps", "initialisation", "weights", "selection")
# Fields that a comparison may be about: two methods, or two values of an ablated field.
MODEL = ("stands_for", *ABLATED)
# Recipe fields that can move a score; claims do not hold them.
RECIPE = (
    *("optimizer", "learning_rate", "inverse_sqrt_after", "linear_decay_share", "dropout"),
    *("horizontal_flip", "mixed_precision", "sigma_min", "sigma_max", "rho", "sigma_data"),
    *("mu_form", "mu0", "s0", "s1"),
)
FIELDS = ("nfe", *SCORED, *TRAINING, *MODEL)
# Recipe fields that follow from an ablated one: N and mu are fixed or follow a schedule.
FOLLOWING = {"num_scales": ("s0", "s1"), "target_ema": ("mu0",)}
# A record without one of these is not set beside a printed score.
NEEDED = {*SCORING, "dataset", "network", "images_seen", "batch_size", "total_steps"}
UNKNOWN = (None, "", "not stated", "as released")
NAMES = ("for the better", "for the worse")  # the sides of an ordering, in words


class Agreement(Struct, frozen=True):
    """Agreement of two scores, in words by field."""

    different: dict[str, str]  # both values of a field that differs
    unknown: dict[str, str]  # the side that does not state a field

    def __str__(self) -> str:
        """Both in one line, "" where all fields are known and agree."""
        unknown = f"not known: {', '.join(self.unknown.values())}" if self.unknown else ""
        return "; ".join(filter(None, [*self.different.values(), unknown]))


def compare_facts(
    a: Mapping[str, Value], b: Mapping[str, Value], fields: Iterable[str], names: tuple[str, str]
) -> Agreement:
    """Compare two scores in some fields; names are e.g. ("in the paper", "in the record")."""
    different, unknown = {}, {}
    for field in fields:
        values = a[field], b[field]
        silent = [name for name, value in zip(names, values, strict=True) if value in UNKNOWN]
        if silent:
            unknown[field] = f"{field} ({' and '.join(silent)})"
        elif values[0] != values[1]:
            different[field] = f"{field} {in_words(values, names)}"
    return Agreement(different, unknown)


def in_words(values: tuple[object, object], names: tuple[str, str]) -> str:
    """Two values with their places: "1,000 in the paper, 20 in the record"."""
    formats = {float: "g", int: ","}
    texts = [f"{value:{formats.get(type(value), '')}}" for value in values]
    return ", ".join(f"{text} {name}" for text, name in zip(texts, names, strict=True))


def times_in_words(times: Iterable[float]) -> str:
    """Sampling times to six digits: "80 → 0.46998"."""
    return " → ".join(f"{t:.6g}" for t in times)


def facts(score: AbsoluteClaim | RunRecord) -> Facts:
    """The fields that make a score comparable, None where not known."""
    if isinstance(score, RunRecord):
        known = _record_facts(score)
    else:
        setting, shared = score.setting, ("num_images", "network", *TRAINING[:4], "selection")
        known = {name: getattr(score, name) for name in shared}
        known |= {"nfe": setting.nfe, "protocol": f"{setting.protocol}-v{score.protocol_version}"}
        known |= dict.fromkeys(("reference", "dataset"), score.training_data)
        known |= {"scale": "paper", "stands_for": setting.recipe}
        known["weights"] = f"EMA {score.ema_rate:.6g}"
        known.update(ablated_fields(setting.recipe, setting.changes) or {})
    for name in known.keys() & {*ABLATED, *RECIPE}:
        if known[name] is None:  # a recipe field without a value is known too
            known[name] = "by a schedule" if name in FOLLOWING else "none"
    return dict.fromkeys((*FIELDS, *SAMPLING, *RECIPE, "teacher")) | known


def _record_facts(record: RunRecord) -> Facts:
    reference, checkpoint = record.reference, record.checkpoint
    images = f"{reference.dataset}-{reference.split}" if reference.dataset else reference.name
    protocol = f"{record.protocol.name}-v{record.protocol.version}"
    known: Facts = {"nfe": record.nfe, "num_images": record.num_images}
    known |= {"protocol": protocol, "reference": images, **(ablated(record) or {})}
    if sampler := record.sampler:
        known |= {name: getattr(sampler, name) for name in SAMPLING[1:]}
        known["times"] = times_in_words(sampler.times)
    if record.times:
        known["times"] = times_in_words(record.times)
    if record.training:
        known |= to_builtins(record.training)
    if checkpoint:
        known |= {"network": checkpoint.network, "selection": checkpoint.selection.rule}
        known |= {name: getattr(checkpoint.recipe, name) for name in RECIPE if checkpoint.recipe}
    if training := trained(record):
        shared = ("scale", "dataset", "stands_for", *TRAINING[:4])
        known |= {name: getattr(training, name) for name in shared}
        rate = training.ema_rate and f"EMA {training.ema_rate:.6g}"  # the digits of Table 3
        known["weights"] = rate if training.weights == "ema" else training.weights
        known["teacher"] = training.teacher_sha256 and training.teacher_sha256[:10]
    return known


def sampling_agreement(record: RunRecord) -> Agreement:
    """Agreement of a record's sampling with the times of its checkpoint and its protocol."""
    to_uint8 = None if (rule := record.protocol.to_uint8) == "as given" else rule
    expected: Facts = {"times": None, "to_uint8": to_uint8, "clip_denoised": True}
    if (checkpoint := record.checkpoint) and record.nfe in (1, 2):
        times = [t for t in (checkpoint.sigma_max, checkpoint.two_step_time)[: record.nfe] if t]
        expected["times"] = times_in_words(times) if len(times) == record.nfe else None
    return compare_facts(expected, facts(record), SAMPLING, ("expected", "here"))


def against_claim(claim: AbsoluteClaim, record: RunRecord) -> Agreement:
    """Agreement of a record with a claim; what the record must state and does not, differs."""
    found = compare_facts(facts(claim), facts(record), FIELDS, ("in the paper", "here"))
    needed = {f: f"not known: {text}" for f, text in found.unknown.items() if f in NEEDED}
    unknown = {field: text for field, text in found.unknown.items() if field not in needed}
    return Agreement(found.different | sampling_agreement(record).different | needed, unknown)


def scoring(record: RunRecord) -> tuple[object, ...]:
    """Facts that make scores of different images comparable: protocol, reference, num_images."""
    protocol = record.protocol
    return protocol.name, protocol.version, record.reference.sha256, record.num_images


def trained(record: RunRecord) -> TrainingRun | None:
    """Training of the checkpoint behind a record."""
    return record.checkpoint.training if record.checkpoint else None


def is_demo(record: RunRecord) -> bool:
    """True if the model is one of the demo's."""
    return (training := trained(record)) is not None and training.scale == "demo"


def is_own(record: RunRecord) -> bool:
    """True if a generator is none of the paper's models, their teachers and official files."""
    training, checkpoint = trained(record), record.checkpoint
    official = checkpoint and checkpoint.converted and checkpoint.converted.name
    papers = {claim.setting.recipe for claim in claims() if isinstance(claim, AbsoluteClaim)}
    teachers = {f"{recipe.rpartition('-')[0]}-edm" for recipe in papers}
    imitates = training is not None and training.stands_for in papers | teachers
    return record.nfe is not None and not official and not imitates


def ablated(record: RunRecord) -> Mapping[str, str | int | float | None] | None:
    """Values of a model's recipe in the fields of `ABLATED`; None where unknown."""
    if record.checkpoint and (recipe := record.checkpoint.recipe):
        return {name: getattr(recipe, name) for name in ABLATED}
    training = trained(record)  # a released checkpoint: the paper's with its own distance
    fields = training and ablated_fields(training.stands_for)
    return {**fields, "distance": training.distance} if training and fields else None


def is_ablation(record: RunRecord) -> bool:
    """True if a model was trained with another value of an ablated field than its recipe's."""
    training = trained(record)
    fields = ablated_fields(training.stands_for, (), is_demo(record)) if training else None
    return fields is not None and ablated(record) != fields


def anchors(record: RunRecord, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Other records of images from elsewhere, scored like a record, in the order of FD."""
    elsewhere = [r for r in records if r.nfe is None and r.id != record.id]
    found = [r for r in elsewhere if scoring(r) == scoring(record)]
    return sorted(found, key=lambda r: (r.scores.get("fid", math.inf), r.id))


def group(records: Iterable[RunRecord], *ignored: str) -> list[list[RunRecord]]:
    """Groups of records whose identity differs in seed and ignored keys alone, sorted by seed."""
    found = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.model, r.nfe or 0, r.seed or 0)):
        shared = {k: v for k, v in record.identity.items() if k not in ("seed", *ignored)}
        found[repr(shared)].append(record)
    return sorted(found.values(), key=lambda g: (g[0].model, g[0].nfe or 0, repr(g[0].identity)))


class Side(Struct, frozen=True):
    """One model with one sampler under one protocol."""

    first: RunRecord  # the record of the first seed; the others agree but in seed and scores
    records: dict[int, RunRecord]  # record by seed, of the seeds that count
    remark: str  # note on those that do not, "" where all do


def sides(records: Sequence[RunRecord], nfe: int, metric: Metric) -> list[Side]:
    """Sides with that number of evaluations and that score, in the order of models' names.

    Scores of the seeds on which a checkpoint or its second time was chosen flatter the model and
    do not count.
    """
    usable = [r for r in records if r.nfe == nfe and metric in r.scores]
    found = []
    for members in group(usable, "model"):
        by_seed = {record.seed: record for record in members if record.seed is not None}
        checkpoint = members[0].checkpoint
        chosen_on = {*checkpoint.selection.seeds} if checkpoint else set()
        if checkpoint and nfe > 1 and (times := checkpoint.two_step_selection):
            chosen_on |= {*times.seeds}
        left_out = ", ".join(str(seed) for seed in sorted(chosen_on & by_seed.keys()))
        remark = f"without seed {left_out}, on which checkpoint or time was chosen"
        counted = {seed: r for seed, r in by_seed.items() if seed not in chosen_on}
        if by_seed:
            found.append(Side(members[0], counted, remark if left_out else ""))
    return found


def setting_sides(records: Sequence[RunRecord], setting: Setting, demo: bool) -> list[Side]:
    """Sides of the model of a setting, with its changes and no others, at that scale."""
    wanted = setting.recipe, demo, ablated_fields(setting.recipe, setting.changes, demo)
    return [
        side
        for side in sides(records, setting.nfe, setting.metric)
        if (training := trained(side.first))
        and (training.stands_for, is_demo(side.first), ablated(side.first)) == wanted
    ]


def disagreement(
    settings: tuple[Setting, Setting], records: tuple[RunRecord, RunRecord], demo: bool
) -> tuple[list[str], list[str]]:
    """Fields in which two sides are not comparable, and notes on the rest, in words."""
    notes, found, different = [], [], {}
    known = facts(records[0]), facts(records[1])
    for setting, own, name in () if demo else zip(settings, known, NAMES, strict=True):
        plain = setting.replace(changes=())
        paper = next(c for c in claims() if isinstance(c, AbsoluteClaim) and c.setting == plain)
        fields = [field for field in FIELDS if field not in dict(setting.changes)]
        found.append(compare_facts(facts(paper), own, fields, ("in the paper", name)))
    checksums = {record.checkpoint and record.checkpoint.sha256 for record in records}
    if len(checksums) > 1:
        fields = [*SCORED]
        if settings[0].recipe == settings[1].recipe:
            wanted = [ablated_fields(s.recipe, s.changes, demo) or {} for s in settings]
            changed = [f for f in ABLATED if wanted[0].get(f) != wanted[1].get(f)]
            varied = {*changed, *(name for field in changed for name in FOLLOWING.get(field, ()))}
            fields += [field for field in (*TRAINING, *MODEL) if field not in varied]
            further = [field for field in (*RECIPE, "teacher") if field not in varied]
            different = compare_facts(*known, further, NAMES).different
            if not changed:  # two checkpoints of one setting
                models = records[0].model, records[1].model
                different = {"model": f"model {in_words(models, NAMES)}"}
        else:
            trained_by = ("images_seen", "batch_size", "initialisation", "distance")
            otherwise = compare_facts(*known, trained_by, NAMES).different
            notes += [f"trained otherwise: {', '.join(otherwise.values())}"] if otherwise else []
        found.append(compare_facts(*known, fields, NAMES))
    unknown: dict[str, str] = {}
    for agreement in found:
        different, unknown = different | agreement.different, unknown | agreement.unknown
    notes += [f"not known: {', '.join(unknown.values())}"] if unknown else []
    return list(different.values()), notes
