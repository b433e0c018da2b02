"""The forms of a claim: a printed score with its margin, or an ordering of models."""

from dataclasses import dataclass
from typing import ClassVar

from cmrepro.paper.tables import Printed


@dataclass(frozen=True)
class Metric:
    """A score: how it is written, and which direction is better."""

    name: str
    label: str
    higher_is_better: bool


@dataclass(frozen=True)
class Tolerance:
    """How far a mean may lie from a printed value and still reproduce it.

    Attributes:
        name: Of the rule.
        spread_absolute: Run-to-run spread under the protocol, in units of the score.
        spread_relative: The same as a share of the printed value.
        relative: What two correct implementations may differ by, as a share of the printed value.
        source: Where the spread comes from.
    """

    name: str
    spread_absolute: float
    spread_relative: float
    relative: float
    source: str

    def margin(self, printed: Printed) -> float:
        """Rounding of the printed digits + spread + relative part, in units of the score."""
        share = self.spread_relative + self.relative
        return printed.rounding + self.spread_absolute + share * printed.value


@dataclass(frozen=True)
class Setting:
    """What has to be measured.

    Attributes:
        recipe: Name of the recipe, e.g. "cifar10-cd".
        steps: Number of sampling steps.
        protocol: Name of the protocol.
        metric: Name of the metric.
        changes: (recipe field, value) that the claim fixes; the others are the recipe's.
    """

    recipe: str
    steps: int
    protocol: str
    metric: str
    changes: tuple[tuple[str, str | int | float], ...] = ()

    def __str__(self) -> str:
        changes = "".join(f", {field} = {value}" for field, value in self.changes)
        return f"{self.recipe}, {self.steps} step{'s' * (self.steps > 1)}{changes}"


@dataclass(frozen=True)
class AbsoluteClaim:
    """One printed score of a CD or CT row.

    Attributes:
        id: E.g. "song2023/table1/cd/nfe1/fid".
        where: Place in the paper.
        dataset: Data set, as in the table.
        method: "CD" or "CT".
        training_data: Its training images, as records name them.
        network: Preset of the network.
        setting: Recipe, steps, protocol and metric that decide it.
        printed: The printed cell.
        verified: In which sources it is printed identically.
        num_images: Number of generated images.
        protocol_version: Version of the protocol that a record must carry.
        tolerance: Rule of the margin.
        batch_size: Global batch of the training (Table 3).
        total_steps: Training iterations (Table 3).
        ema_rate: EMA rate of the sampled weights (Table 3).
        initialisation: "teacher" (EDM) or "random".
        selection: Which checkpoint, or "not stated".
        times: How the sampling times were placed.
    """

    kind: ClassVar[str] = "absolute"
    id: str
    where: str
    dataset: str
    method: str
    training_data: str
    network: str
    setting: Setting
    printed: Printed
    verified: str
    num_images: int
    protocol_version: int
    tolerance: Tolerance
    batch_size: int
    total_steps: int
    ema_rate: float
    initialisation: str
    selection: str
    times: str

    @property
    def value(self) -> float:
        """The printed value."""
        return self.printed.value

    @property
    def margin(self) -> float:
        """Largest distance from `value` that counts as equal, in units of the score."""
        return self.tolerance.margin(self.printed)

    @property
    def images_seen(self) -> int:
        """Images seen in training: batch size x iterations."""
        return self.batch_size * self.total_steps


@dataclass(frozen=True)
class Ordering:
    """One model is better than others.

    Attributes:
        id: E.g. "song2023/ordering/cd-better-than-ct-nfe1/cifar10".
        statement: The claim in words.
        where: Place in the paper.
        basis: "tables" (follows from printed cells), "text" (in words) or "figure" (curves only).
        dataset: Data set, as in the tables.
        better: The side that wins.
        worse: The sides that it beats, all of them.
        num_images: Number of generated images on each side.
        note: What else there is to know, or "".
    """

    kind: ClassVar[str] = "ordering"
    id: str
    statement: str
    where: str
    basis: str
    dataset: str
    better: Setting
    worse: tuple[Setting, ...]
    num_images: int
    note: str


Claim = AbsoluteClaim | Ordering
