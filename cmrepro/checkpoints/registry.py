"""The released checkpoints (registry.toml): what each is, where it lies, and its download."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrepro.consistency.parameterization import Parameterization
from cmrepro.consistency.schedules import karras_times
from cmrepro.files import cache_folder, download
from cmrepro.records import TrainingRun
from cmrepro.schema import convert, unknown

# Fields of `TrainingRun` that the registry knows.
PUBLISHED = (
    *("method", "dataset", "initialisation", "weights", "ema_rate", "distance", "batch_size"),
    *("total_steps", "images_seen"),
)


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """One released checkpoint.

    Attributes:
        name: Its key in registry.toml.
        url: Address.
        bytes_approx: Size of the file, roughly.
        checksum: "sha256:…", or "recorded at first download" where none is published.
        format: "torch" (a state dict) or "flax" (a msgpack file).
        dataset: Images it was trained on.
        method: "edm", "cd", "ct", or their continuous-time forms.
        distance: Distance of the consistency loss; None for an EDM teacher.
        network: Name of the network preset.
        sigma_data: Standard deviation of the data.
        sigma_min: The paper's epsilon.
        sigma_max: The paper's T.
        repository: Address of the repository that released it.
        licence: SPDX name of that repository's licence.
        model_card: Address of its model card.
        two_step_index: Index of the second sampling time on the grid, where published.
        num_scales: Points of that grid.
        weights: "ema", or "not stated" where averaged or online weights may be inside.
        total_steps: Optimizer steps; like the next three, of models of Table 3 only.
        batch_size: Images a step.
        initialisation: "teacher" or "random".
        ema_rate: Decay a step of the average.
    """

    name: str
    url: str
    bytes_approx: int
    checksum: str
    format: str
    dataset: str
    method: str
    network: str
    sigma_data: float
    sigma_min: float
    sigma_max: float
    repository: str
    licence: str
    model_card: str
    weights: str
    distance: str | None = None
    two_step_index: int | None = None
    num_scales: int | None = None
    total_steps: int | None = None
    batch_size: int | None = None
    initialisation: str | None = None
    ema_rate: float | None = None

    @property
    def parameterization(self) -> Parameterization:
        """A denoiser ("edm") for teachers, a consistency function ("boundary") otherwise."""
        return "edm" if self.method == "edm" else "boundary"

    @property
    def images_seen(self) -> int | None:
        """Images that training took, where published."""
        if self.total_steps is None or self.batch_size is None:
            return None
        return self.total_steps * self.batch_size

    @property
    def training(self) -> TrainingRun:
        """How it was trained, as far as that is published."""
        fields = {key: getattr(self, key) for key in PUBLISHED}
        stands_for = f"{self.dataset.removesuffix('-train')}-{self.method}"
        return convert(TrainingRun, fields | {"scale": "paper", "stands_for": stands_for}, "")

    @property
    def two_step_time(self) -> float | None:
        """Second sampling time, where published."""
        if self.two_step_index is None or self.num_scales is None:
            return None
        times = karras_times(self.num_scales, self.sigma_min, self.sigma_max)
        return times[self.two_step_index].item()

    @property
    def downloaded(self) -> Path:
        """Where the official file lies once it is there."""
        suffix = {"torch": ".pt", "flax": ".msgpack"}[self.format]
        return cache_folder() / "checkpoints" / f"{self.name}{suffix}"

    @property
    def converted(self) -> Path:
        """Where the converted file lies once it is there."""
        return cache_folder() / "checkpoints" / f"{self.name}.safetensors"


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))


def default_sigmas() -> dict[str, float]:
    """sigma_data, sigma_min and sigma_max of all released models."""
    return {key: value for key, value in _tables()["defaults"].items() if key.startswith("sigma")}


@functools.cache
def released_checkpoints() -> dict[str, ReleasedCheckpoint]:
    """All released checkpoints by name, in the order of registry.toml."""
    tables = _tables()

    def entry(name: str, fields: dict[str, Any]) -> ReleasedCheckpoint:
        source = tables["sources"][fields["source"]]
        own = {key: value for key, value in fields.items() if key != "source"}
        return ReleasedCheckpoint(name=name, **(tables["defaults"] | source | own))

    return {name: entry(name, fields) for name, fields in tables["checkpoints"].items()}


def fetch_checkpoint(name: str) -> Path:
    """The official file of a released checkpoint, downloaded where it is not in the cache yet.

    A file put there by hand is used. An interrupted download goes on where it stopped.

    Raises:
        ValueError: Unknown name; address unreachable (says where to put the file), no space, or
            a file with another checksum than the published or first recorded one.
    """
    released = released_checkpoints()
    if name not in released:
        raise ValueError(unknown("released checkpoint", name, released))
    entry = released[name]
    return download(entry.url, entry.downloaded, entry.checksum)
