"""Like with like: what must agree before two scores are set side by side.

A claim of the paper and a record are brought to the same fields (`facts`); `Agreement` names those
that differ and those that are not known. `pair_agreement` is the one answer about two records, for
verdicts and `cmrepro compare` alike. Other questions have their own answers in `cmrepro.records`:
`RunRecord.identity` tells runs apart, `differences` lists all that differs in their files.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cmrepro.paper import AbsoluteClaim, Setting, claims, stand_ins, training_datasets
from cmrepro.records import RunRecord, TrainingRun
from cmrepro.schema import Struct, to_builtins
from cmrepro.settings import Metric
from cmrepro.training.recipes import load_recipe, recipe_names

Facts = dict[str, Any]

SAMPLING = ("times", "to_uint8", "clip_denoised")
SCORED = ("protocol", "reference", "num_images", "scale", "dataset", "network")
SCORING = (*SCORED[:3], "reference_sha256")  # of a pair of records: claims state no checksum
TRAINING = (
    *("images_seen", "batch_size", "total_steps", "initialisation", "weighting"),
    *("weights", "selection"),
)
# Recipe fields that ablations change.
ABLATED = ("distance", "solver", "num_scales", "target_ema")
# Fields that a comparison may be about: two methods, or two values of an ablated field.
MODEL = ("stands_for", *ABLATED)
FIELDS = ("nfe", *SCORED, *TRAINING, *MODEL)
# Fields in which two methods may differ, with a note.
METHODS = ("images_seen", "batch_size", "initialisation", "distance", "weighting", "optimizer")
IMAGES = ("dataset_sha256", "dataset_files_sha256")  # checksums of what was trained on
# Recipe fields that can move a score; claims do not hold them.
RECIPE = (
    *("optimizer", "learning_rate", "inverse_sqrt_after", "linear_decay_share", "dropout"),
    *("horizontal_flip", "mixed_precision", "sigma_min", "sigma_max", "rho", "sigma_data"),
    *("mu_form", "mu0", "s0", "s1"),
)
# Recipe fields that may differ with an ablated one: N and mu are fixed or follow a schedule, and
# the paper has a learning rate for each distance.
FOLLOWING = {"num_scales": ("s0", "s1"), "target_ema": ("mu0",), "distance": ("learning_rate",)}
# A record without one of these is not set beside a printed score.
NEEDED = ("dataset", "network", "images_seen", "batch_size", "total_steps")
OPTIONAL = {"precision", *IMAGES, *RECIPE, "teacher_sha256"}  # not noted where not known
UNKNOWN = (None, "", "not stated", "as released")
# A recipe field without a value is known too.
EMPTY = dict.fromkeys(("weighting", *ABLATED, *RECIPE), "none")
EMPTY |= dict.fromkeys(("num_scales", "target_ema"), "by a schedule")
NAMES = ("for the better", "for the worse")  # the sides of an ordering, in words


class Agreement(Struct, frozen=True):
    """Agreement of two scores, in words by field."""

    different: dict[str, str]  # both values of a field that differs
    unknown: dict[str, str]  # the side that does not state a field
    allowed: tuple[str, ...] = ()  # differences that a comparison allows

    @property
    def notes(self) -> list[str]:
        """The allowed differences and the unknown fields, a sentence each."""
        unknown = [f"not known: {', '.join(self.unknown.values())}"] if self.unknown else []
        return [*self.allowed, *unknown]

    def __or__(self, other: "Agreement") -> "Agreement":
        """Both together."""
        allowed = tuple(dict.fromkeys(self.allowed + other.allowed))
        return Agreement(self.different | other.different, self.unknown | other.unknown, allowed)


def compare_facts(
    a: Facts,
    b: Facts,
    fields: Iterable[str],
    names: tuple[str, str],
    needed: Sequence[str] = (),
) -> Agreement:
    """Compare two scores in some fields; one that is `needed` and not known differs.

    `names` say where a value is from, e.g. ("in the paper", "in the record").
    """
    different, unknown = {}, {}
    for field in fields:
        values = a.get(field), b.get(field)
        silent = [name for name, value in zip(names, values, strict=True) if value in UNKNOWN]
        text = f"{field} ({' and '.join(silent)})"
        if silent and field in needed:
            different[field] = f"not known: {text}"
        elif silent and field not in OPTIONAL:
            unknown[field] = text
        elif not silent and values[0] != values[1]:
            texts = [str(x)[:10] for x in values] if field.endswith("sha256") else values
            different[field] = f"{field} {in_words(texts, names)}"
    return Agreement(different, unknown)


def in_words(values: Sequence[object], names: tuple[str, str]) -> str:
    """Two values with their places: "1,000 in the paper, 20 in the record"."""
    formats = {float: "g", int: ","}
    texts = [f"{value:{formats.get(type(value), '')}}" for value in values]
    return ", ".join(f"{text} {name}" for text, name in zip(texts, names, strict=True))


def times_in_words(times: Iterable[float]) -> str:
    """Sampling times to six digits: "80 → 0.46998"."""
    return " → ".join(f"{t:.6g}" for t in times)


def facts(score: AbsoluteClaim | RunRecord) -> Facts:
    """The fields that make a score comparable, without those that are not known."""
    known = _record_facts(score) if isinstance(score, RunRecord) else _claim_facts(score)
    empty = {name: text for name, text in EMPTY.items() if known.get(name, "") is None}
    return known | empty


def _claim_facts(claim: AbsoluteClaim) -> Facts:
    setting = claim.setting
    return to_builtins(claim) | {
        "nfe": setting.nfe,
        "images_seen": claim.images_seen,
        "protocol": f"{setting.protocol}-v{claim.protocol_version}",
        "reference": claim.training_data,
        "dataset": claim.training_data,
        "scale": "paper",
        "stands_for": setting.recipe,
        "weights": f"EMA {claim.ema_rate:.6g}",
        "weighting": None,  # lambda(t) = 1 in all experiments (Section 4)
        **(ablated_fields(setting.recipe, setting.changes) or {}),
    }


def _record_facts(record: RunRecord) -> Facts:
    reference, checkpoint, training = record.reference, record.checkpoint, trained(record)
    images = reference.dataset_split or reference.name
    known: Facts = {"stands_for": record.model}  # unless its training says otherwise
    recipe = checkpoint.recipe if checkpoint else None
    for part in filter(None, (record.sampler, recipe, training or record.training)):
        known |= to_builtins(part)
    known.pop("distance", None)
    times = record.sampler.times if record.sampler else record.times
    known |= {
        "nfe": record.nfe,
        "num_images": record.num_images,
        "protocol": f"{record.protocol.name}-v{record.protocol.version}",
        "reference": images,
        "reference_sha256": reference.sha256,
        "times": times_in_words(times) if times else None,
        "precision": record.sampler.precision if record.sampler else None,
        **(ablated(record) or {}),
    }
    if checkpoint:
        known |= {"network": checkpoint.network, "selection": checkpoint.selection.rule}
    if training:
        rate = training.ema_rate and f"EMA {training.ema_rate:.6g}"  # the digits of Table 3
        known["weights"] = rate if training.weights == "ema" else training.weights
        known.setdefault("weighting", None)  # of an official file, which has no recipe
        if None not in (training.dataset_sha256, reference.images_sha256):
            # The images decide and not their name: those of the reference, or others of its name.
            if training.dataset_sha256 == reference.images_sha256:
                known["dataset"] = images
            elif training.dataset == images:
                known["dataset"] = f"other images named {images}"
    return known


def sampling_agreement(record: RunRecord, name: str) -> Agreement:
    """Agreement of a record's sampling with the times of its checkpoint and its protocol."""
    expected: Facts = {"clip_denoised": True, "to_uint8": record.protocol.to_uint8}
    if record.protocol.to_uint8 == "as given":
        del expected["to_uint8"]
    is_multistep = record.sampler is None or record.sampler.algorithm == "multistep"
    if (checkpoint := record.checkpoint) and record.nfe in (1, 2) and is_multistep:
        times = [t for t in (checkpoint.sigma_max, checkpoint.two_step_time)[: record.nfe] if t]
        expected |= {"times": times_in_words(times)} if len(times) == record.nfe else {}
    found = compare_facts(expected, facts(record), expected, ("expected", name))
    return Agreement({f"{key} {name}": text for key, text in found.different.items()}, {})


def against_claim(
    claim: AbsoluteClaim,
    record: RunRecord,
    fields: Iterable[str] = FIELDS,
    name: str = "here",
    needed: Sequence[str] = NEEDED,
) -> Agreement:
    """Agreement of a record with the model of a claim, as printed or as it was evaluated."""
    known, steps = facts(record), claim.evaluated_steps
    found = compare_facts(facts(claim), known, fields, ("in the paper", name), needed)
    if steps is not None and known.get("total_steps") == steps:
        text = f"{found.different.pop('total_steps')} (deviation {claim.evaluated_deviation})"
        if known["images_seen"] == steps * claim.batch_size:
            del found.different["images_seen"]
        found |= Agreement({}, {}, (text,))
    return found | sampling_agreement(record, name)


def against_setting(setting: Setting, record: RunRecord, name: str) -> Agreement:
    """Agreement of a model with that of an ordering's side, which fixes the fields it changes."""
    if ablated_fields(setting.recipe) is None:
        return Agreement({}, {})  # the paper has no such model
    demo, plain = is_demo(record), setting.replace(changes=())
    printed = (c for c in claims() if isinstance(c, AbsoluteClaim) and c.setting == plain)
    if not demo and (paper := next(printed, None)):  # none of PD
        fields = [field for field in FIELDS if field not in dict(setting.changes)]
        return against_claim(paper, record, fields, name, ())
    expected, dataset = training_datasets(setting.recipe, demo), facts(record).get("dataset")
    text = f"dataset {' or '.join(expected)} expected, {dataset} {name}"
    return Agreement({} if dataset in expected else {"dataset": text}, {})


def pair_agreement(
    a: RunRecord, b: RunRecord, names: tuple[str, str] = ("in the first", "in the second")
) -> Agreement:
    """Agreement of two records whose scores are set side by side.

    Scoring and sampling must agree. One model may have another number of evaluations; models of
    one recipe may differ in ablated fields and what follows from them; two methods, or models from
    elsewhere, may be trained otherwise on the same images.
    """
    known, fields, noted = (facts(a), facts(b)), [*SCORING, "precision"], []
    found = sampling_agreement(a, names[0]) | sampling_agreement(b, names[1])
    models = [record.identity["checkpoint"] or record.model for record in (a, b)]
    if models[0] != models[1] and any(x.get("dataset") for x in known):
        fields += ["dataset", *IMAGES]
        recipes = [training and training.stands_for for training in map(trained, (a, b))]
        if None not in recipes:
            fields += ["scale", "network", *SAMPLING[1:]]
        if recipes[0] != recipes[1] or recipes[0] is None:
            noted = [*METHODS]
        else:
            changed = compare_facts(*known, ABLATED, names).different
            varied = {*changed, *(name for field in changed for name in FOLLOWING.get(field, ()))}
            noted = ["learning_rate"] if "learning_rate" in varied else []
            trained_by = (*TRAINING, *MODEL, *RECIPE, "teacher_sha256")
            fields += [field for field in trained_by if field not in varied]
            if not changed and a.nfe != b.nfe:  # of one model, or else two things vary
                found |= Agreement({"model": f"model {in_words((a.model, b.model), names)}"}, {})
    otherwise = compare_facts(*known, noted, names).different.values()
    allowed = (f"trained otherwise: {', '.join(otherwise)}",) if otherwise else ()
    return found | compare_facts(*known, fields, names, ("dataset",)) | Agreement({}, {}, allowed)


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
    imitates = training and (ablated_fields(training.stands_for) or training.method == "edm")
    return record.nfe is not None and not official and not imitates


@functools.cache
def ablated_fields(
    recipe: str, changes: tuple[tuple[str, str | int | float], ...] = (), demo: bool = False
) -> Facts | None:
    """Values of a setting's recipe, with its changes, in the fields of `ABLATED`.

    None if there is no such recipe. In the demo's recipes another distance stands in for LPIPS.
    """
    if (name := f"demo-{recipe}" if demo else recipe) not in recipe_names():
        return None
    found: Facts = {field: getattr(load_recipe(name), field) for field in ABLATED}
    names = stand_ins() if demo else {}
    return found | {field: names[x].value if x in names else x for field, x in changes}


def ablated(record: RunRecord) -> Facts | None:
    """Values of a model's recipe in the fields of `ABLATED`; None where unknown."""
    if record.checkpoint and (recipe := record.checkpoint.recipe):
        return {name: getattr(recipe, name) for name in ABLATED}
    training = trained(record)  # a released checkpoint: the paper's with its own distance
    fields = training and ablated_fields(training.stands_for)
    return {**fields, "distance": training.distance} if training and fields else None


def is_ablation(record: RunRecord) -> bool:
    """True if a model was trained with another value of an ablated field than its recipe's."""
    training, known = trained(record), ablated(record)
    fields = ablated_fields(training.stands_for, (), is_demo(record)) if training else None
    if fields and known and training and training.method == "pd":  # halved by each student
        fields = fields | {"num_scales": known["num_scales"]}
    return None not in (fields, known) and known != fields


def anchors(record: RunRecord, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Other records of images from elsewhere, scored like a record, in the order of FD."""
    own = [facts(record).get(field) for field in SCORING]
    elsewhere = [r for r in records if r.nfe is None and r.id != record.id]
    found = [r for r in elsewhere if [facts(r).get(field) for field in SCORING] == own]
    return sorted(found, key=lambda r: (r.scores.get("fid", math.inf), r.id))


def group(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups of records that differ only in their seeds of sampling and training, in their order.

    Where a training seed has several files, such as those of two precisions, each stays apart.
    """
    order = sorted(records, key=lambda r: (r.model, r.nfe or 0, r.training_seed, r.seed or 0))
    keyed = [(_of_any_seed(record), record, record.identity) for record in order]
    found, files = defaultdict(list), defaultdict[object, set[object]](set)
    for recipe, record, identity in keyed:
        files[recipe, record.training_seed].add(identity["checkpoint"])
    for recipe, record, identity in keyed:
        shared = {k: v for k, v in identity.items() if k != "seed"}
        if recipe and len(files[recipe, record.training_seed]) == 1:
            shared["checkpoint"] = recipe
        found[repr((shared, sorted(record.scores)))].append(record)
    return sorted(found.values(), key=lambda g: (g[0].model, g[0].nfe or 0, repr(g[0].identity)))


def _of_any_seed(record: RunRecord) -> str | None:
    """All that trainings of one recipe share, whatever their seed; None where it is not known."""
    checkpoint, training = record.checkpoint, trained(record)
    if not (checkpoint and checkpoint.recipe and training):
        return None
    training = training.replace(seed=None, duration_s=None, provenance=None)
    chosen_on = checkpoint.two_step_selection and checkpoint.two_step_selection.seeds
    return repr((record.model, checkpoint.recipe, training, checkpoint.selection, chosen_on))


def num_trainings(members: Iterable[RunRecord]) -> int:
    """Number of training seeds of a group."""
    return len({record.training_seed for record in members})


def seed_means(members: Sequence[RunRecord], metric: Metric) -> list[float]:
    """Mean score of each training of a group, or each score where there is one training."""
    if num_trainings(members) < 2:
        return [record.scores[metric] for record in members]
    by_training = defaultdict(list)
    for record in members:
        by_training[record.training_seed].append(record.scores[metric])
    return [math.fsum(scores) / len(scores) for scores in by_training.values()]


def kind_of_seeds(members: Iterable[RunRecord]) -> str:
    """Kind of the seeds of `seed_means`: "training" or "sampling"."""
    return "training" if num_trainings(members) > 1 else "sampling"
