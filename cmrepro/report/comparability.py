"""Like with like: what must agree before two scores are set side by side.

A claim of the paper and a record are brought to the same fields (`facts`); `Agreement` names those
that differ and those that are not known. Verdicts, tables and `cmrepro compare` use it alike.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from cmrepro.paper import ABLATED, AbsoluteClaim, Setting, ablated_fields
from cmrepro.records import RunRecord, TrainingRun
from cmrepro.schema import Struct
from cmrepro.settings import Metric

Value = str | int | float | bool | None
Facts = dict[str, Value]

SAMPLING = ("times", "to_uint8", "clip_denoised")
SCORING = ("protocol", "reference", "num_images")
DATA_AND_SIZE = ("scale", "dataset", "network")
TRAINING = ("images_seen", "batch_size", "total_steps", "initialisation", "weights", "selection")
# Fields that a comparison may be about: two methods, or two values of an ablated field.
MODEL = ("stands_for", *ABLATED)
FIELDS = ("nfe", *SAMPLING, *SCORING, *DATA_AND_SIZE, *TRAINING, *MODEL)
# A record without one of these is not set beside a printed score.
NEEDED = {*SCORING, "dataset", "network", "images_seen", "batch_size", "total_steps"}
UNKNOWN = (None, "", "not stated", "as released")


class Agreement(Struct, frozen=True):
    """Agreement of two scores, field by field.

    Attributes:
        different: Both values, in words, by field that differs.
        unknown: The side that does not state it, in words, by field.
    """

    different: dict[str, str]
    unknown: dict[str, str]

    def __str__(self) -> str:
        """Both in one line, "" where all fields are known and agree."""
        unknown = f"not known: {', '.join(self.unknown.values())}" if self.unknown else ""
        return "; ".join(filter(None, [*self.different.values(), unknown]))


def compare_facts(
    a: Mapping[str, Value], b: Mapping[str, Value], fields: Iterable[str], names: tuple[str, str]
) -> Agreement:
    """Compare two scores in some fields.

    Args:
        a: `facts` of a claim or a record.
        b: `facts` of another.
        fields: Fields that have to agree.
        names: Places of the two, e.g. ("in the paper", "in the record").
    """
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


def facts(score: AbsoluteClaim | RunRecord) -> Facts:
    """The fields that make a score comparable, None where not known."""
    known = _claim_facts(score) if isinstance(score, AbsoluteClaim) else _record_facts(score)
    return dict.fromkeys(FIELDS) | known


def _claim_facts(claim: AbsoluteClaim) -> Facts:
    setting, shared = claim.setting, ("num_images", "network", *TRAINING[:4], "selection")
    return {
        **{name: getattr(claim, name) for name in shared},
        "nfe": setting.nfe,
        "protocol": f"{setting.protocol}-v{claim.protocol_version}",
        "reference": claim.training_data,
        "scale": "paper",
        "dataset": claim.training_data,
        "weights": f"EMA {claim.ema_rate:.6g}",
        "stands_for": setting.recipe,
        **_ablated_facts(ablated_fields(setting.recipe, setting.changes)),
    }


def _record_facts(record: RunRecord) -> Facts:
    reference = record.reference
    images = f"{reference.dataset}-{reference.split}" if reference.dataset else reference.name
    known: Facts = {
        "nfe": record.nfe,
        "protocol": f"{record.protocol.name}-v{record.protocol.version}",
        "reference": images,
        "num_images": record.num_images,
    }
    if sampler := record.sampler:
        known |= {name: getattr(sampler, name) for name in SAMPLING[1:]}
        known["times"] = times_in_words(sampler.times)
    if checkpoint := record.checkpoint:
        known |= {"network": checkpoint.network, "selection": checkpoint.selection.rule}
        known |= _ablated_facts(ablated(record))
    if training := trained(record):
        shared = ("scale", "dataset", "stands_for", *TRAINING[:4])
        known |= {name: getattr(training, name) for name in shared}
        rate = training.ema_rate and f"EMA {training.ema_rate:.6g}"  # the digits of Table 3
        known["weights"] = rate if training.weights == "ema" else training.weights
    return known


def times_in_words(times: Iterable[float]) -> str:
    """Sampling times to six digits: "80 → 0.46998"."""
    return " → ".join(f"{t:.6g}" for t in times)


def _ablated_facts(fields: Mapping[str, str | int | float | None] | None) -> Facts:
    """Recipe fields as facts: a field without a value is known too."""
    absent = {"num_scales": "by a schedule", "target_ema": "by a schedule"}
    return {
        name: absent.get(name, "none") if value is None else value
        for name, value in (fields or {}).items()
    }


def expected_sampling(record: RunRecord) -> Facts:
    """The sampling that checkpoint and protocol ask for; None where neither states it.

    The second time is the checkpoint's own, published or selected, and the rounding that of the
    protocol's tools.
    """
    checkpoint, expected = record.checkpoint, dict[str, Value].fromkeys(SAMPLING)
    expected["clip_denoised"] = True
    if record.protocol.to_uint8 != "as given":
        expected["to_uint8"] = record.protocol.to_uint8
    if checkpoint and record.nfe == 1:
        expected["times"] = times_in_words([checkpoint.sigma_max])
    if checkpoint and record.nfe == 2 and checkpoint.two_step_time:
        expected["times"] = times_in_words([checkpoint.sigma_max, checkpoint.two_step_time])
    return expected


def sampling_agreement(record: RunRecord) -> Agreement:
    """Agreement of a record's sampling with `expected_sampling`."""
    names = ("expected", "here")
    return compare_facts(expected_sampling(record), facts(record), SAMPLING, names)


def against_claim(claim: AbsoluteClaim, record: RunRecord) -> Agreement:
    """Agreement of a record with a claim; what the record must state and does not, differs."""
    names = ("in the paper", "here")
    fields = [field for field in FIELDS if field not in SAMPLING]
    found = compare_facts(facts(claim), facts(record), fields, names)
    sampling = sampling_agreement(record).different
    missing = {field: text for field, text in found.unknown.items() if field in NEEDED}
    return Agreement(
        {**found.different, **sampling, **{f: f"not known: {t}" for f, t in missing.items()}},
        {field: text for field, text in found.unknown.items() if field not in missing},
    )


def trained(record: RunRecord) -> TrainingRun | None:
    """Training of the checkpoint behind a record."""
    return record.checkpoint.training if record.checkpoint else None


def is_demo(record: RunRecord) -> bool:
    """True if the model is one of the demo's."""
    training = trained(record)
    return training is not None and training.scale == "demo"


def ablated(record: RunRecord) -> Mapping[str, str | int | float | None] | None:
    """Values of a model's recipe in the fields of `ABLATED`; None where unknown.

    A released checkpoint has no recipe; its recipe is the paper's with the published distance.
    """
    if record.checkpoint and (recipe := record.checkpoint.recipe):
        return {name: getattr(recipe, name) for name in ABLATED}
    if not (training := trained(record)):
        return None
    fields = ablated_fields(training.stands_for)
    return fields and {**fields, "distance": training.distance}


def is_of(record: RunRecord, setting: Setting, demo: bool) -> bool:
    """True if a model is that of a setting, with its changes and no others, at that scale."""
    training = trained(record)
    return (
        training is not None
        and (training.scale == "demo") == demo
        and training.stands_for == setting.recipe
        and ablated(record) == ablated_fields(setting.recipe, setting.changes, demo)
    )


def is_ablation(record: RunRecord) -> bool:
    """True if a model was trained with another value of an ablated field than its recipe's."""
    training = trained(record)
    fields = ablated_fields(training.stands_for, (), is_demo(record)) if training else None
    return fields is not None and ablated(record) != fields


def group(
    records: Iterable[RunRecord], ignore: Collection[str] = ("seed",)
) -> list[list[RunRecord]]:
    """Records whose identity differs in the ignored keys alone, together.

    Groups are in the order of model, NFE and identity, the records of each in that of seeds.
    """
    found = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.model, r.nfe or 0, r.seed or 0)):
        shared = {key: value for key, value in record.identity.items() if key not in ignore}
        if record.seed is not None:  # else the images alone tell two sample sets apart
            shared["images"] = None
        found[repr(shared)].append(record)
    return sorted(found.values(), key=lambda g: (g[0].model, g[0].nfe or 0, repr(g[0].identity)))


class Side(Struct, frozen=True):
    """One model with one sampler under one protocol.

    Attributes:
        records: Record by seed; all agree but in seed and scores.
        chosen_on: Seeds on which the checkpoint or its second time was chosen: their scores
            flatter the model and do not count.
    """

    records: dict[int, RunRecord]
    chosen_on: frozenset[int]

    @property
    def first(self) -> RunRecord:
        """The record of the first seed."""
        return next(iter(self.records.values()))

    @property
    def condition(self) -> tuple[str, str | None, int]:
        """The way of scoring: protocol, checksum of the reference, number of images."""
        scored = facts(self.first)
        return str(scored["protocol"]), self.first.reference.sha256, self.first.num_images

    @property
    def checksum(self) -> str | None:
        """Checksum of the checkpoint."""
        return self.first.checkpoint.sha256 if self.first.checkpoint else None

    @property
    def remark(self) -> str:
        """Note on the seeds that do not count, "" where all do."""
        seeds = ", ".join(str(seed) for seed in sorted(self.chosen_on))
        return f"without seed {seeds}, on which checkpoint or time was chosen" if seeds else ""

    def scores(self, metric: Metric) -> dict[int, float]:
        """Score by seed, of the seeds that count."""
        return {
            seed: record.scores[metric]
            for seed, record in self.records.items()
            if seed not in self.chosen_on
        }


def sides(records: Sequence[RunRecord], nfe: int, metric: Metric) -> list[Side]:
    """Sides with that number of evaluations and that score, in the order of models' names."""
    usable = [r for r in records if r.nfe == nfe and r.seed is not None and metric in r.scores]
    found = []
    for members in group(usable, ignore=("seed", "model")):
        by_seed = {record.seed: record for record in members if record.seed is not None}
        found.append(Side(by_seed, _chosen_on(members[0]) & by_seed.keys()))
    return found


def _chosen_on(record: RunRecord) -> frozenset[int]:
    """Seeds on which a record's checkpoint or, after the first evaluation, its time was chosen."""
    if not (checkpoint := record.checkpoint):
        return frozenset()
    times = checkpoint.two_step_selection if record.nfe != 1 else None
    return frozenset(checkpoint.selection.seeds) | frozenset(times.seeds if times else ())
