"""The second time of two-step sampling, chosen by its score among the points of a time grid.

The paper chose it so by ternary search on FID (Section 5), which needs scores that fall towards
the best point from both sides: of 16 inner points it asks for 6 to 8, of 199 for 15 to 19. Where
they do not, it may end beside a valley; scoring the whole grid finds the deepest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmrepro.checkpoints.io import CheckpointModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.data import ImageDataset
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import load_reference
from cmrepro.metrics.score import Task, score
from cmrepro.sampling import sample, sampler_settings
from cmrepro.schema import convert, unknown
from cmrepro.settings import Selection

METRIC = "fid"
# What is tuned on some images must be reported on others, so seeds below are never searched on.
FIRST_SEARCH_SEED = 1000

Search = Callable[[Callable[[float], float], Sequence[float]], dict[int, float]]


def grid_search(score: Callable[[float], float], times: Sequence[float]) -> dict[int, float]:
    """The score at every inner point of a time grid.

    Args:
        score: Of a time; less is better.
        times: The grid, N points.

    Returns:
        Score by index, 1 to N - 2.
    """
    return {index: score(time) for index, time in enumerate(times[1:-1], 1)}


def ternary_search(score: Callable[[float], float], times: Sequence[float]) -> dict[int, float]:
    """The scores that a ternary search for the least one asks for.

    The probes are those of the official code (`scripts/ternary_search.py` of
    openai/consistency_models at 3d86141), the ends are not: there the last interval may give a
    probe in the place of an end that is better (deviation `ternary-search-ends`), and the first
    and last point of the grid, where two steps are one, may be scored. Here the best one of all
    that were scored counts.

    Args:
        score: Of a time; less is better.
        times: The grid, N points.

    Returns:
        Score by index, in the order in which they were asked for.
    """
    scores: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in scores:
            scores[index] = score(times[index])
        return scores[index]

    left, right = 0, len(times) - 1
    while (width := right - left) > 2:
        first, second = left + width // 3, right - -(-width // 3)
        if at(first) < at(second):
            right = second
        else:
            left = first
    at(left + 1)  # the last interval has two parts, and its ends are scored or outside
    return scores


SEARCHES: dict[str, Search] = {"ternary": ternary_search, "grid": grid_search}


@dataclass(frozen=True)
class TimeSearch:
    """What a search has found.

    Attributes:
        rows: Index, time and all scores of each point, in the order in which they were asked for.
        index: Of the point with the least FID.
        time: Of that point.
        selection: How the time was chosen, for the checkpoint's header.
    """

    rows: list[dict[str, float]]
    index: int
    time: float
    selection: Selection


def search_time(
    model: CheckpointModel,
    protocol: Protocol,
    *,
    method: str = "ternary",
    num_scales: int | None = None,
    num_images: int | None = None,
    seed: int = FIRST_SEARCH_SEED,
    device: str = "cpu",
) -> TimeSearch:
    """Search the second time of Algorithm 1 by the FID of images sampled with times (T, t).

    Args:
        model: Consistency function.
        protocol: Gives the scores, FID among them.
        method: "ternary" or "grid".
        num_scales: N of the grid; by default that of the recipe (at its end, where N grows).
        num_images: Images at each time; what the protocol asks for by default.
        seed: Of the noise, the same at each time; at least `FIRST_SEARCH_SEED`.
        device: Where the extractor runs.

    Raises:
        ValueError: The seed is one of those whose scores are reported; an unknown method; a model
            that takes no second step, or does not say its grid; a protocol without FID.
    """
    info = model.info
    if method not in SEARCHES:
        raise ValueError(unknown("search", method, SEARCHES))
    if seed < FIRST_SEARCH_SEED:
        raise ValueError(
            f"got seed = {seed}; seeds below {FIRST_SEARCH_SEED} are for scores that are "
            "reported, and a time chosen on them would flatter them: search on another"
        )
    if METRIC not in protocol.metrics:
        raise ValueError(
            f"protocol {protocol.name} has no {METRIC}, by which the time is chosen; its metrics "
            f"are {', '.join(protocol.metrics)}"
        )
    if info.parameterization == "edm":
        raise ValueError(
            f"{model.path.name} is an EDM denoiser, which has no second time; give a model "
            "trained by CD or CT"
        )
    num_scales = _recipe_scales(model) if num_scales is None else num_scales
    if num_scales < 3:
        raise ValueError(f"got {num_scales} points of the grid; a point between needs at least 3")
    times = karras_times(num_scales, info.sigma_min, info.sigma_max).tolist()
    num_images = protocol.num_images if num_images is None else num_images
    task = Task(protocol, load_reference(protocol), num_images)
    rows: list[dict[str, float]] = []

    def fid(time: float) -> float:
        settings = sampler_settings(info, [info.sigma_max, time])
        progress = f"t = {time:.3g}"
        samples = sample(model, settings, num_images, seed, model.image_size, progress)
        images = ImageDataset(model.path.stem, samples.stages[-1])
        [scores] = score(images, [task], device=device)
        rows.append({"index": times.index(time), "time": time, **scores.values})
        return scores.values[METRIC]

    found = SEARCHES[method](fid, times)
    index = min(found, key=lambda i: found[i])
    selection = convert(
        Selection,
        {
            "rule": f"least {METRIC} of {len(found)} candidates",
            "metric": METRIC,
            "search": method,
            "protocol": f"{protocol.name}-v{protocol.version}",
            "seeds": [seed],
            "num_images": num_images,
        },
        "",
    )
    return TimeSearch(rows, index, times[index], selection)


def _recipe_scales(model: CheckpointModel) -> int:
    """N of the grid on which the model was trained last."""
    recipe = model.info.recipe
    if recipe and recipe.num_scales:
        return recipe.num_scales
    if recipe and recipe.s1:
        return recipe.s1 + 1  # deviation `ct-num-boundaries`
    raise ValueError(
        f"{model.path.name} does not say on which time grid it was trained; give its number of "
        "points with --grid"
    )
