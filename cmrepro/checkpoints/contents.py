"""Tables of the known checkpoints, and of the contents of one."""

from pathlib import Path
from typing import Any

from cmrepro.checkpoints.convert import local_checkpoint, released_fields
from cmrepro.checkpoints.formats import read_contents, weights_file
from cmrepro.checkpoints.io import bundled_checkpoints, read_info
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints
from cmrepro.records import CheckpointInfo


def checkpoint_rows() -> list[dict[str, Any]]:
    """One row a bundled or released checkpoint: state, training, network, second time, size."""

    def row(
        name: str, state: str, info: CheckpointInfo | ReleasedCheckpoint, size: int
    ) -> dict[str, Any]:
        facts = ("method", "distance", "dataset")
        return {
            "name": name,
            "state": state,
            **{key: getattr(info.training, key) for key in facts},
            "network": info.network,
            "images_seen": info.training and info.training.images_seen,
            "two_step_time": info.two_step_time,
            "bytes": size,
        }

    return [
        row(name, "bundled", read_info(path), path.stat().st_size)
        for name, path in bundled_checkpoints().items()
    ] + [
        row(name, _state(entry), entry, entry.bytes_approx)
        for name, entry in released_checkpoints().items()
    ]


def _state(entry: ReleasedCheckpoint) -> str:
    states = {"converted": entry.converted, "downloaded": entry.downloaded}
    return next((state for state, path in states.items() if path.is_file()), "not downloaded")


def contents(name: str) -> dict[str, Any]:
    """Format, size and number of parameters of a checkpoint, then its header; nested as there.

    Nothing is downloaded: the registry alone describes a released checkpoint that is not here.

    Args:
        name: Name or path, as for `load_model`.

    Raises:
        ValueError: Unknown name, or a broken or foreign file.
    """
    entry = None if Path(name).exists() else released_checkpoints().get(name)
    if entry and not entry.converted.is_file():
        return {"state": _state(entry), "bytes": entry.bytes_approx} | released_fields(entry)
    path = entry.converted if entry else local_checkpoint(name)
    found = read_contents(path)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in found.weights.values()}
    return {
        "format": found.format,
        "bytes": weights_file(path).stat().st_size,
        "num_parameters": sum(tensor.numel() for tensor in found.weights.values()),
        "dtype": ", ".join(sorted(types)),
        "step": found.step,
        **found.fields,
    }
