"""Faults of a checkpoint: which weights, the order of their channels, the second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cmrepro.checkpoints.load import CheckpointModel, load_model
from cmrepro.checks import statements
from cmrepro.checks.findings import (
    FID_LIMIT,
    Examination,
    Finding,
    Settings,
    likelihood,
    moved,
    undone,
)
from cmrepro.checks.images import features_of
from cmrepro.checks.statistics import fid
from cmrepro.consistency.schedules import karras_times
from cmrepro.metrics.references import load_reference
from cmrepro.networks.layers import SelfAttention
from cmrepro.sampling import sample, sampler_settings
from cmrepro.training.state import newest_state

MIRROR_POINTS = 1001
NUM_IMAGES = 200
EDM_STEPS = 6  # of Heun's method: coarse, but as coarse for both sides of a comparison


def relative_distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Euclidean distance of weights over the norm of the others."""
    pairs = [(weights[name].double(), other.double()) for name, other in others.items()]
    squared = sum(float((a - b).square().sum()) for a, b in pairs)
    return (squared / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def online_weights(to_online: float, to_ema: float) -> Finding | None:
    """Whether weights are nearer to the online than to the averaged ones of a training state.

    Args:
        to_online: Relative distance to the first.
        to_ema: To the second; of a checkpoint saved with the state it is 0.
    """
    if to_online >= to_ema:
        return None
    return Finding(
        "online-weights",
        f"distance {to_online:.2g} to the online weights of the state beside it, {to_ema:.2g} to "
        "the averaged ones",
        "the second is 0",
        likelihood(to_ema, to_online),
    )


def reorder_heads(network: nn.Module) -> bool:
    """Put qkv from (head, query/key/value, channel) to (query/key/value, head, channel).

    Args:
        network: Changed in place.

    Returns:
        Whether it has attention of several heads; with one, the two orders are the same.
    """
    layers = [m for m in network.modules() if isinstance(m, SelfAttention) and m.num_heads > 1]
    for layer in layers:
        for parameter in layer.qkv.parameters():
            heads = parameter.data.unflatten(0, (layer.num_heads, 3, -1))
            parameter.data = heads.transpose(0, 1).flatten(0, 2).contiguous()
    return bool(layers)


def mirrored_time(time: float, sigma_min: float, sigma_max: float) -> float:
    """The time that has the same index from the other end of the time grid."""
    times = karras_times(MIRROR_POINTS, sigma_min, sigma_max)
    index = int(torch.argmin((times.log() - torch.tensor(time).log()).abs()))
    return float(times[MIRROR_POINTS - 1 - index])


def examine_checkpoint(what: str, settings: Settings) -> Examination:
    """What is wrong with a checkpoint of ours: from its weights and a few of its images.

    Raises:
        ValueError: It cannot be loaded, or the reference cannot be had.
    """
    model = load_model(what, settings.device)
    reference = load_reference(settings.protocol, settings.reference)
    info, examination = model.info, Examination()

    def distances(steps: int | list[float]) -> list[float]:
        """Fréchet distance of the images after each step."""
        chosen = sampler_settings(info, steps)
        stages = sample(model, chosen, NUM_IMAGES, 0, model.image_size).stages
        return [fid(features_of(images, settings), reference) for images in stages]

    second = info.two_step_time
    steps = EDM_STEPS if info.parameterization == "edm" else 1 if second is None else 2
    as_is = distances(steps)
    if second is not None:
        mirror = mirrored_time(second, info.sigma_min, info.sigma_max)
        mirrored = distances([info.sigma_max, mirror])[-1]
        how = f"with second time {mirror:.3g} instead of {second:.3g}"
        # Near the middle of the grid (demo CT) they differ by less than 1 %; with demo CD the
        # mirrored time is 7 % worse.
        finding = undone("time-direction", as_is[-1], mirrored, how, FID_LIMIT)
        examination.add("time-direction", finding)
    finding = statements.online({"weights": getattr(info.training, "weights", None)})
    averages = _states_of(model)
    if averages is not None:
        own = model.network.state_dict()
        away = [relative_distance(own, weights) for weights in averages]
        finding = online_weights(*away) or finding
    examination.add("online-weights", finding)
    if finding is not None and averages is not None:
        own = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        model.network.load_state_dict(averages[1])
        effect = moved((as_is[-1], distances(steps)[-1]), "with the averaged weights")
        examination.findings[-1] = replace(finding, effect=effect)
        model.network.load_state_dict(own)
    if reorder_heads(model.network):
        few = EDM_STEPS if info.parameterization == "edm" else 1
        limit = FID_LIMIT / 2
        clean = f"it rises; {limit:.0%} is chance"
        # Right weights get worse: by 24 % (demo CD), 5 % (demo CT), 9 to 13 % (demo EDM), of some
        # 200 images.
        pair = as_is[0], distances(few)[0]
        finding = undone("head-order", *pair, "with qkv reordered", limit, clean)
        examination.add("head-order", finding)
    return examination


def _states_of(model: CheckpointModel) -> list[dict[str, Tensor]] | None:
    """The online and averaged weights of the newest training state beside a checkpoint.

    Raises:
        ValueError: All states there are damaged.
    """
    newest, _ = newest_state(model.path.parent)
    if newest is None:
        return None
    state = torch.load(newest, map_location="cpu", weights_only=True)
    both = [
        {name.removeprefix("network."): tensor for name, tensor in state[key].items()}
        for key in ("online", "ema")
    ]
    own = {name: tensor.shape for name, tensor in model.network.state_dict().items()}
    return both if all({n: t.shape for n, t in w.items()} == own for w in both) else None
