"""Attribution of the difference between two protocols' scores, one change at a time.

The changes come in this order: the reference built again from real images, resize, extractor, the
second protocol's reference, number of images, settings of the metrics. Rounding to uint8 is none
of them, since the images have it already: sample them again (`cmrepro sample --to-uint8`).
"""

from typing import Any

from cmrepro.data import ImageSource
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.references import build_reference, load_reference
from cmrepro.settings import Protocol

METRIC_SETTINGS = ("stored_features", "inception_score", "kernel", "manifold")


def explain(
    images: ImageSource,
    first: Protocol,
    second: Protocol,
    *,
    real: ImageSource | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Rows of a change, its values, and every metric's score with its difference to the row above.

    References are built from `real` images where the extractors differ.
    """
    shared = tuple(metric for metric in first.metrics if metric in second.metrics)
    if not shared:
        raise ValueError(f"protocols {first.name} and {second.name} share no metric")
    # References of the steps in between may be built from any real images.
    first, second = (p.replace(metrics=shared, dataset=None) for p in (first, second))
    a, b = first.extractor, second.extractor
    if a != b and real is None:
        found = f"protocols {first.name} and {second.name} have different extractors"
        needed = "references in between are built from real images: give them with --real"
        raise ValueError(f"{found}; {needed}")
    reference, last = load_reference(first), load_reference(second)
    settings = {name: getattr(first, name) for name in METRIC_SETTINGS}
    if first.inception_score and second.inception_score:  # but its own extractor of logits
        logits = second.inception_score.extractor
        settings["inception_score"] = first.inception_score.replace(extractor=logits)
    alike = second.replace(num_images=first.num_images, **settings)

    tasks = {("as it is", first.name): Task(first, reference)}
    source = reference.name
    if a != b and real is not None:
        source = f"of {real.name}"
        steps = {("reference", f"{reference.name} -> {source}"): first}
        if a.image_size == b.image_size and a.resize != b.resize:
            resized = first.replace(extractor=a.replace(resize=b.resize))
            steps["resize", f"{a.resize} -> {b.resize}"] = resized
        steps["extractor", f"{a.name} -> {b.name}"] = alike
        for step, p in steps.items():
            built = build_reference(real, p, dataset=real.name, split="as given", device=device)
            tasks[step] = Task(p, built)
    if a != b or first.reference != second.reference:
        tasks["reference", f"{source} -> {last.name}"] = Task(alike, last)
    if (count := first.num_images) != second.num_images:
        alike = alike.replace(num_images=second.num_images)
        tasks["number of images", f"{count:,} -> {second.num_images:,}"] = Task(alike, last)
    if changed := [k for k in METRIC_SETTINGS if getattr(alike, k) != getattr(second, k)]:
        tasks["metric settings", ", ".join(changed)] = Task(second, last)

    scores = score(images, [*tasks.values()], device=device, progress=True)
    rows: list[dict[str, Any]] = []
    above = scores[0].values
    for (change, detail), result in zip(tasks, scores, strict=True):
        rows.append({"change": change, "detail": detail})
        for metric, value in result.values.items():
            rows[-1] |= {metric: value, f"{metric} moved": value - above[metric]}
        above = result.values
    return rows
