"""The second time of two-step sampling, chosen by its score over a grid."""

from cmrepro.checkpoints.io import CheckpointModel
from cmrepro.consistency.schedules import karras_times
from cmrepro.experiments.sampling import sample, sampler_settings
from cmrepro.metrics.protocols import Protocol
from cmrepro.metrics.references import load_reference
from cmrepro.metrics.score import score


def two_step_scores(
    model: CheckpointModel,
    protocol: Protocol,
    num_scales: int,
    num_images: int,
    seed: int,
) -> list[dict[str, float]]:
    """Scores of Algorithm 1 with times (T, t(i)) for every inner index i of a time grid.

    The paper chose the time by FID (Section 5), on 50,000 images. What is chosen here on a seed
    must be reported on others.

    Returns:
        One row an index: index, time and the protocol's scores, from large times to small.
    """
    info = model.info
    reference = load_reference(protocol)
    rows = []
    times = karras_times(num_scales, info.sigma_min, info.sigma_max).tolist()
    for index, time in enumerate(times[1:-1], 1):
        settings = sampler_settings(info, [info.sigma_max, time])
        samples = sample(
            model, settings, num_images, seed, model.image_size, progress=f"t = {time:.3g}"
        )
        scores = score(samples.stages[-1], protocol, reference, num_images=num_images)
        rows.append({"index": index, "time": time, **scores.values})
    return rows
