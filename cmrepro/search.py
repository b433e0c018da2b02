"""The next sampling time of Algorithm 1, by FID among the points of a time grid.

It is the second one after sigma_max alone. The paper chooses one time after another by ternary
search (Section 5), which scores 6 to 8 of 16 inner points, 15 to 19 of 199, and may miss the best
one where scores do not fall towards it from both sides.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cmrepro.checkpoints.load import CheckpointModel, WrappedModel
from cmrepro.checkpoints.registry import released_checkpoints
from cmrepro.consistency.samplers import check_times
from cmrepro.consistency.schedules import karras_times
from cmrepro.distributed import broadcast, temporary_folder
from cmrepro.files import atomic_path
from cmrepro.metrics.evaluate import Task, score
from cmrepro.metrics.references import load_reference
from cmrepro.records import CheckpointInfo
from cmrepro.sample_sets import image_source
from cmrepro.sampling import sample, sampler_settings
from cmrepro.schema import read_json, to_json
from cmrepro.settings import Metric, Protocol, Selection

METRIC: Metric = "fid"
FIRST_SEARCH_SEED = 1000  # those below are for scores that are reported

Score = Callable[[float], float]


def grid_search(score: Score, times: Sequence[float]) -> dict[int, float]:
    """Score (lower is better) of every inner point of a grid of N times, by index 1 to N - 2."""
    return {index: score(time) for index, time in enumerate(times[1:-1], 1)}


def ternary_search(score: Score, times: Sequence[float]) -> dict[int, float]:
    """Scores of the points that a ternary search probes, by index in the order of the probes.

    The probes are those of the official code (`scripts/ternary_search.py` of
    openai/consistency_models at 3d86141), the ends are not: there the last interval may return a
    probe in place of a better end (deviation `ternary-search-ends`), and the first and last point
    of the grid, where two steps are one, may be scored. Here the best of all scored points counts.
    """
    scores: dict[int, float] = {}

    def at(index: int) -> float:
        scores[index] = scores[index] if index in scores else score(times[index])
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


SEARCHES = {"ternary": ternary_search, "grid": grid_search}


class FirstStepOnce(nn.Module):
    """A model whose images of the first step are computed once, and kept in a folder."""

    def __init__(self, model: CheckpointModel, sigma_max: float, folder: Path) -> None:
        super().__init__()
        self.model, self.sigma_max, self.folder = model, sigma_max, folder

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The model's images, by their noise."""
        if t[0] < self.sigma_max:
            return self.model(x_t, t, labels)
        path = self.folder / f"{hashlib.sha256(x_t.cpu().numpy().tobytes()).hexdigest()}.npy"
        if not path.exists():
            with atomic_path(path) as temporary:
                np.save(temporary, self.model(x_t, t, labels).cpu().numpy())
        return torch.from_numpy(np.load(path)).to(x_t.device)


@dataclass(frozen=True)
class TimeSearch:
    """Result of a search."""

    rows: list[dict[str, float]]  # index, time, scores of each point, in the order of scoring
    time: float  # the point with the lowest FID
    selection: Selection  # how it was chosen, for the checkpoint's header


def _num_scales(info: CheckpointInfo) -> int | None:
    """Points N of the grid of a model: of its recipe, at its end where N grows, or published."""
    if info.recipe:  # the last grid (deviation `ct-num-boundaries`)
        return info.recipe.num_scales or (info.recipe.s1 or 0) + 1
    name = info.converted.name if info.converted else None
    released = released_checkpoints().get(name or "")
    return released.num_scales if released else None


def search_time(
    model: CheckpointModel,
    protocol: Protocol,
    *,
    method: Literal["ternary", "grid"] = "ternary",
    after: Sequence[float] | None = None,
    num_scales: int | None = None,
    num_images: int | None = None,
    seed: int = FIRST_SEARCH_SEED,
    device: str = "cpu",
    folder: Path | None = None,
) -> TimeSearch:
    """Search the next time t of Algorithm 1 by the FID of images sampled at (*after, t).

    `after` is (sigma_max,) by default. N of the grid is by default that of the recipe (at its end,
    where N grows) or the registry's, and the number of images at each time that of the protocol.
    The noise is the same at each time. With a `folder` of its own, an interrupted search goes on.
    """
    info = model.info
    if seed < FIRST_SEARCH_SEED:
        reported = f"seeds below {FIRST_SEARCH_SEED} are for scores that are reported"
        raise ValueError(f"got seed = {seed}; {reported}, which the chosen time would flatter")
    if METRIC not in protocol.metrics:
        raise ValueError(f"protocol {protocol.name} has no {METRIC}, which the search needs")
    if info.parameterization == "edm":
        raise ValueError(f"{model.path.name} is an EDM denoiser, which has no second time")
    num_scales = num_scales or _num_scales(info)
    if num_scales is None or num_scales < 3:
        found = f"got a grid of {num_scales or 'unknown'} points for {model.path.name}"
        raise ValueError(f"{found}; give a number of points >= 3 with --grid")
    grid = karras_times(num_scales, info.sigma_min, info.sigma_max, info.rho).tolist()
    after = [*(after or [info.sigma_max])]
    check_times(after, info.sigma_min, info.sigma_max)
    times = [after[-1], *(t for t in grid if t < after[-1])]
    if len(times) < 3:
        found = f"got a last time of {after[-1]:g}, below which the grid has no inner point"
        raise ValueError(f"{found}; give a larger time or number of points")
    num_images = num_images or protocol.num_images
    dataset = info.training.dataset if info.training else None
    task = Task(protocol, load_reference(protocol, None, dataset), num_images)
    rows: list[dict[str, float]] = []

    def fid(time: float) -> float:
        settings = sampler_settings(info, [*after, time], protocol.to_uint8)
        label, at_time, scored = f"t = {time:.3g}", place / str(time), place / f"{time}.json"
        values = broadcast(read_json(dict[str, float], scored) if scored.is_file() else None)
        if values is None:
            samples = sample(f, settings, num_images, seed, model.image_size, label, at_time)
            results = score(image_source(label, samples.stages[-1]), [task], device=device)
            values = broadcast(results and results[0].values)
            if results:
                with atomic_path(scored) as temporary:
                    temporary.write_text(to_json(values))
                shutil.rmtree(at_time)
        rows.append({"index": grid.index(time), "time": time, **values})
        return float(values[METRIC])

    with nullcontext(folder) if folder else temporary_folder() as place:
        once = FirstStepOnce(model, info.sigma_max, place)
        f = WrappedModel(once, model.image_size, model.num_classes, info, model.provenance).eval()
        scores = SEARCHES[method](fid, times)
    index = min(scores, key=lambda i: scores[i])
    selection = Selection(
        rule=f"least {METRIC} of {len(scores)} among {num_scales} points, the reported metric",
        metric=METRIC,
        search=method,
        protocol=f"{protocol.name}-v{protocol.version}",
        seeds=(seed,),
        num_images=num_images,
    )
    return TimeSearch(rows, times[index], selection)
