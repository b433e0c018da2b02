"""Tables of the known checkpoints, and of the contents of one."""

from pathlib import Path
from typing import Any

from cmrepro.checkpoints.convert import local_checkpoint, released_fields
from cmrepro.checkpoints.formats import read_contents, weights_file
from cmrepro.checkpoints.io import bundled_checkpoints, read_info
from cmrepro.checkpoints.registry import ReleasedCheckpoint, released_checkpoints


def checkpoint_rows() -> list[dict[str, Any]]:
    """One row a bundled or released checkpoint: state, training, network, second time, size."""
    bundled = {name: read_info(path) for name, path in bundled_checkpoints().items()}
    released = released_checkpoints()
    states = dict.fromkeys(bundled, "bundled") | {n: _state(e) for n, e in released.items()}
    sizes = {name: path.stat().st_size for name, path in bundled_checkpoints().items()}
    sizes |= {name: entry.bytes_approx for name, entry in released.items()}
    facts = ("method", "distance", "dataset", "images_seen")
    return [
        {"name": name, "state": states[name]}
        | {fact: getattr(entry.training, fact) for fact in facts}
        | {"network": entry.network, "two_step_time": entry.two_step_time, "bytes": sizes[name]}
        for name, entry in (bundled | released).items()
    ]


def _state(entry: ReleasedCheckpoint) -> str:
    states = {"converted": entry.converted, "downloaded": entry.downloaded}
    return next((state for state, path in states.items() if path.is_file()), "not downloaded")


def contents(name: str) -> dict[str, Any]:
    """Format, size and number of parameters of a checkpoint (as for `load_model`), and its header.

    Nothing is downloaded: the registry alone describes a released checkpoint that is not here.
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
