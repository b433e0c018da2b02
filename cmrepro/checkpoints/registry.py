"""The released checkpoints (registry.toml): settings, published training, download."""

import functools
from pathlib import Path
from typing import Any, Literal

from cmrepro.consistency.parameterization import Parameterization
from cmrepro.consistency.schedules import karras_times
from cmrepro.files import RECORDED, cache_folder
from cmrepro.records import TrainingRun
from cmrepro.schema import Struct, convert, read_toml, to_builtins


class ReleasedCheckpoint(Struct, frozen=True, kw_only=True):
    """One released checkpoint."""

    name: str
    url: str
    bytes_approx: int
    format: Literal["torch", "flax"]  # a state dict, or a msgpack file
    network: str  # like the next three, as in `CheckpointInfo`
    sigma_data: float
    sigma_min: float
    sigma_max: float
    licence: str  # SPDX name of the licence of the repository that released it
    model_card: str  # address
    training: TrainingRun  # published facts of its training
    checksum: str = RECORDED  # as for `files.download`; none is published
    two_step_index: int | None = None  # index of the second sampling time, where published
    num_scales: int | None = None  # points of the grid of that index, or to be searched

    @property
    def parameterization(self) -> Parameterization:
        """A denoiser ("edm") for teachers, a consistency function ("boundary") otherwise."""
        return "edm" if self.training.method == "edm" else "boundary"

    @property
    def two_step_time(self) -> float | None:
        """Second sampling time, where published."""
        if (index := self.two_step_index) is None or self.num_scales is None:
            return None
        return karras_times(self.num_scales, self.sigma_min, self.sigma_max)[index].item()

    @property
    def state(self) -> str:
        """Either "converted", "downloaded" or "not downloaded"."""
        paths = {"converted": self.converted, "downloaded": self.downloaded}
        return next((state for state, path in paths.items() if path.is_file()), "not downloaded")

    @property
    def info_fields(self) -> dict[str, Any]:
        """The fields of `CheckpointInfo` that are published."""
        sigmas = ("sigma_data", "sigma_min", "sigma_max")
        keys = ("network", "parameterization", *sigmas, "two_step_time", "training")
        return {key: to_builtins(getattr(self, key)) for key in keys}

    @property
    def official_name(self) -> str:
        """Name of the file in the authors' folder, under which it may lie in the cache too."""
        return self.url.partition("/consistency/")[2]

    @property
    def downloaded(self) -> Path:
        """Path of the official file in the cache."""
        suffix = {"torch": ".pt", "flax": ".msgpack"}[self.format]
        folder = cache_folder() / "checkpoints"
        official = folder / self.official_name
        return official if official.is_file() else folder / f"{self.name}{suffix}"

    @property
    def converted(self) -> Path:
        """Path of the converted file in the cache."""
        return cache_folder() / "checkpoints" / f"{self.name}.safetensors"


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    return read_toml(dict[str, dict[str, Any]], Path(__file__).with_name("registry.toml"))


def default_sigmas() -> dict[str, float]:
    """sigma_data, sigma_min and sigma_max of all released models."""
    return _tables()["defaults"]


def released(name: str | Path) -> ReleasedCheckpoint | None:
    """The released checkpoint of a name; None for another name, and for a path that exists."""
    return None if Path(name).exists() else released_checkpoints().get(str(name))


@functools.cache
def released_checkpoints() -> dict[str, ReleasedCheckpoint]:
    """All released checkpoints by name, in the order of registry.toml."""
    tables = _tables()
    entries = {}
    for name, row in tables["checkpoints"].items():
        fields = tables["defaults"] | tables["sources"][row["source"]] | row | {"name": name}
        del fields["source"]
        training = {key: fields.pop(key) for key in TrainingRun.__struct_fields__ if key in fields}
        stands_for = f"{training['dataset'].removesuffix('-train')}-{training['method']}"
        training |= {"scale": "paper", "stands_for": stands_for}
        if "total_steps" in training:
            training["images_seen"] = training["total_steps"] * training["batch_size"]
        entries[name] = convert(ReleasedCheckpoint, fields | {"training": training}, name)
    return entries
