"""Settings of a run: recipe, sampler, protocol, reference, selection.

TOML tables, checkpoint headers and records hold them as these types.
"""

from typing import Annotated, Literal, get_args

from msgspec import Meta

from cmrepro.files import RECORDED
from cmrepro.schema import Checksum, NotNegative, Positive, Share, Struct

Metric = Literal["fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage"]
METRICS: tuple[Metric, ...] = get_args(Metric)
MANIFOLD_METRICS: tuple[Metric, ...] = ("precision", "recall", "density", "coverage")
Rounding = Literal["round", "truncate"]
Method = Literal["edm", "cd", "ct"]
# Of the released checkpoints: the paper's appendix trains in continuous time too.
ReleasedMethod = Literal[Method, "continuous-cd", "continuous-cd-stopgrad", "continuous-ct"]
Variant = Literal["paper", "released"]
Scale = Literal["demo", "paper"]
Initialisation = Literal["random", "teacher"]
_CHECKSUMS = "sha256:[0-9a-f]{64}|sha256-prefix:[0-9a-f]{8,64}"


class Recipe(Struct, frozen=True, kw_only=True):
    """Everything needed to train one model: a column of Table 3 and what the table leaves out.

    Attributes:
        name: Its key in recipes.toml.
        variant: "paper", or "released" for the settings of the official code.
        scale: "paper", or "demo" for a network that a laptop samples.
        stands_for: The paper's model that it trains or imitates, e.g. "cifar10-cd".
        method: "edm" (denoising, the teacher), "cd" (Algorithm 2) or "ct" (Algorithm 3).
        dataset: Name of the training images.
        network: Name of a network preset.
        initialisation: "random", or "teacher" for the teacher's weights.
        optimizer: "radam".
        learning_rate: Rate of the first step; constant unless one of the next two is given.
        inverse_sqrt_after: Images after which the rate falls as 1 / sqrt(images / this) (EDM2).
        linear_decay_share: Share of the steps, at the end, over which the rate falls to 0.
        batch_size: Global batch, images.
        ema_rate: Decay a step of the averaged weights that are sampled from.
        total_steps: Optimizer steps.
        dropout: Probability.
        horizontal_flip: Flip each image with probability 1/2.
        mixed_precision: Train in half precision.
        num_gpus: Devices the source used; a device's share of the batch is one forward pass
            unless `--micro-batch` says otherwise.
        sigma_min: The paper's epsilon.
        sigma_max: The paper's T.
        rho: Exponent of the time grid.
        sigma_data: Standard deviation of the data.
        mu_form: Divisor of mu(k): "paper" or "released".
        distance: d of the consistency losses.
        solver: ODE solver of CD.
        target_ema: mu, where fixed.
        mu0: mu at the start, where it follows mu(k).
        num_scales: N, where fixed.
        s0: N at the start, where it follows N(k).
        s1: N - 1 at the end, where it follows N(k).
        schedule_steps: K of N(k), where training stops before K or continues after it.
        two_step_index: Index on the time grid of the second sampling time, where published.

    Raises:
        ValueError: Fields that exclude each other, or that the method does not have.
    """

    name: str
    variant: Variant
    scale: Scale = "paper"
    stands_for: str
    method: Method
    dataset: str
    network: str
    initialisation: Initialisation
    optimizer: str
    learning_rate: Annotated[float, Meta(gt=0)]
    inverse_sqrt_after: Positive | None = None
    linear_decay_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    batch_size: Positive
    ema_rate: Share
    total_steps: Positive
    dropout: Share
    horizontal_flip: bool
    mixed_precision: bool
    num_gpus: Positive
    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    mu_form: Variant
    distance: str | None = None
    solver: str | None = None
    target_ema: Share | None = None
    mu0: Share | None = None
    num_scales: Positive | None = None
    s0: Positive | None = None
    s1: Positive | None = None
    schedule_steps: Positive | None = None
    two_step_index: Positive | None = None

    def __post_init__(self) -> None:
        unused = {"edm": _CONSISTENCY_FIELDS, "cd": (), "ct": ("solver",)}[self.method]
        for key in unused:
            if (value := getattr(self, key)) is not None:
                raise ValueError(
                    f"got {key} = {value} for recipe '{self.name}', which {self.method.upper()} "
                    "does not have; leave it out"
                )
        if self.method == "edm":
            return
        fixed, scheduled = self.num_scales is not None, self.s0 is not None
        if fixed == scheduled or scheduled != (self.s1 is not None):
            raise ValueError(f"recipe '{self.name}' needs either num_scales or s0 and s1")
        if (self.target_ema is None) == (self.mu0 is None) or (self.mu0 and not scheduled):
            raise ValueError(
                f"recipe '{self.name}' needs either target_ema or, with s0 and s1, mu0"
            )
        if self.s0 and self.s1 and self.s0 > self.s1 + 1:
            raise ValueError(f"got s0 = {self.s0}, s1 = {self.s1}; needed is s0 <= s1 + 1")
        last = (self.num_scales or (self.s1 or 0) + 1) - 1
        if self.two_step_index is not None and self.two_step_index >= last:
            raise ValueError(
                f"got two_step_index = {self.two_step_index}; allowed is 1 to {last - 1}"
            )


_CONSISTENCY_FIELDS = (
    *("distance", "solver", "target_ema", "mu0", "num_scales", "s0", "s1", "schedule_steps"),
    "two_step_index",
)


class SamplerSettings(Struct, frozen=True, kw_only=True):
    """How noise becomes images.

    Attributes:
        algorithm: "multistep" (Algorithm 1, for f) or "heun" (EDM's deterministic sampler, for D).
        times: Times at which f is evaluated, or the grid of Heun's method, decreasing.
        to_uint8: How 127.5 x + 127.5 becomes 0-255: nearest level ("round") or the next lower one
            ("truncate", the official code).
        clip_denoised: Clip the result of each evaluation to [-1, 1].
    """

    algorithm: Literal["multistep", "heun"]
    times: tuple[float, ...]
    to_uint8: Rounding = "round"
    clip_denoised: bool = True

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return len(self.times) if self.algorithm == "multistep" else 2 * len(self.times) - 1


class Weights(Struct, frozen=True, kw_only=True):
    """A file of an extractor's weights.

    Attributes:
        name: Its key in [weights] of protocols.toml.
        file: Name of the file, in the package or in the cache's folder `weights`.
        checksum: "sha256:…", "sha256-prefix:…" where only the first digits are published, or, of
            a download, "recorded at first download".
        source: Publisher.
        package: Python package that holds the file, by import name; None for a download.
        url: Address of a download; None for a file in a package.
    """

    name: str
    file: str
    checksum: Annotated[str, Meta(pattern=f"^({_CHECKSUMS}|{RECORDED})$")]
    source: str
    package: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if (self.package is None) == (self.url is None):
            raise ValueError(f"weights '{self.name}' must have a package or a url, and not both")
        if self.package and self.checksum == RECORDED:
            raise ValueError(f"weights '{self.name}': a file of a package needs its checksum")


class Extractor(Struct, frozen=True, kw_only=True):
    """Image network that gives features and logits.

    Attributes:
        name: Its key in protocols.toml.
        network: Architecture.
        weights: File of its weights.
        image_size: Side length in px of its input.
        resize: "bilinear" (half-pixel centres, antialiased when shrinking),
            "tensorflow1-bilinear" (corner-aligned origin, no antialiasing), "pytorch-bilinear"
            (half-pixel centres, no antialiasing) or "pil-bicubic" (Pillow on float32 channels,
            antialiased when shrinking, clipped to 0-255, not rounded).
        mean: Subtracted from red, green, blue (0-255).
        std: Divides them after that.
        feature_dim: Number of features D.
        num_logits: Number of class logits; 0 without any.
        spatial_dim: Number of spatial features (sFID); 0 without any.
    """

    name: str
    network: Literal["efficientnet-lite0", "inception-2015", "inception-torchscript", "dinov2"]
    weights: Weights
    image_size: Positive
    resize: Literal["bilinear", "tensorflow1-bilinear", "pytorch-bilinear", "pil-bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feature_dim: Positive
    num_logits: NotNegative = 0
    spatial_dim: NotNegative = 0


class InceptionScoreSettings(Struct, frozen=True, kw_only=True):
    """Settings of IS.

    Attributes:
        num_splits: Number of parts; exclusive with `split_size`.
        split_size: Images in each part.
        shuffle: Shuffle the images before they are parted.
        seed: Seed of that shuffle.
        extractor: Network that gives the logits, where it is not the protocol's.
    """

    num_splits: Positive | None = None
    split_size: Positive | None = None
    shuffle: bool = False
    seed: NotNegative | None = None
    extractor: Extractor | None = None

    def __post_init__(self) -> None:
        if (self.num_splits is None) == (self.split_size is None):
            raise ValueError("inception_score needs either num_splits or split_size")
        if self.shuffle != (self.seed is not None):
            raise ValueError("inception_score needs a seed where shuffle = true, and only there")


class KernelSettings(Struct, frozen=True, kw_only=True):
    """Settings of KID: subsets and the polynomial kernel (x·y / D + coef0)^degree."""

    num_subsets: Positive
    subset_size: Positive
    degree: Positive
    coef0: float
    seed: NotNegative


class ManifoldSettings(Struct, frozen=True, kw_only=True):
    """Settings of precision, recall, density and coverage.

    Attributes:
        neighborhood: k: a ball reaches to the k-th nearest neighbour.
    """

    neighborhood: Positive


class StoredFeatures(Struct, frozen=True, kw_only=True):
    """Real images whose features are stored: how many, and the seed of their choice."""

    num_images: Positive
    seed: NotNegative


class Protocol(Struct, frozen=True, kw_only=True):
    """A named, versioned way to score a sample set.

    Attributes:
        name: Name of the protocol.
        version: Raised by every change that moves a score.
        source: Whose way of scoring it is.
        extractor: Network that gives the features.
        to_uint8: How its tools turn [-1, 1] into pixels; "as given" for tools that read images.
        num_images: Number of images that a score needs.
        metrics: Its metrics, in the order of tables.
        reference: Name of the reference statistics used by default.
        dataset: The only data set that it is defined for, e.g. "cifar10-train".
        stored_features: Real features of KID and the manifold metrics.
        inception_score: Settings of IS.
        kernel: Settings of KID.
        manifold: Settings of precision, recall, density and coverage.
    """

    name: str
    version: Positive
    source: str
    extractor: Extractor
    to_uint8: Literal["round", "truncate", "as given"]
    num_images: Positive
    metrics: tuple[Metric, ...]
    reference: str
    dataset: str | None = None
    stored_features: StoredFeatures | None = None
    inception_score: InceptionScoreSettings | None = None
    kernel: KernelSettings | None = None
    manifold: ManifoldSettings | None = None

    @property
    def logits_extractor(self) -> Extractor:
        """Network that gives the logits of IS."""
        return (self.inception_score and self.inception_score.extractor) or self.extractor

    def __post_init__(self) -> None:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"got metrics = {list(self.metrics)}; needed: one or more, each once")
        for metric in self.metrics:
            for key in _METRIC_SETTINGS.get(metric, ()):
                if getattr(self, key) is None:
                    raise ValueError(f"'{key}' is missing, which {metric} needs; add its table")
        if "is" in self.metrics and not self.logits_extractor.num_logits:
            raise ValueError(
                f"{self.logits_extractor.name} gives no logits for is; set the extractor of "
                "inception_score, or remove is"
            )
        if "sfid" in self.metrics and not self.extractor.spatial_dim:
            raise ValueError(
                f"{self.extractor.name} gives no spatial features for sfid; choose an extractor "
                "with spatial_dim, or remove sfid"
            )


_MANIFOLD = ("manifold", "stored_features")
_METRIC_SETTINGS: dict[Metric, tuple[str, ...]] = {
    "is": ("inception_score",),
    "kid": ("kernel", "stored_features"),
    **{metric: _MANIFOLD for metric in MANIFOLD_METRICS},
}


class ReferenceMetadata(Struct, frozen=True, kw_only=True):
    """What reference statistics were made of; None where the file does not say.

    Attributes:
        dataset: Data set, e.g. "cifar10".
        split: "train", "test" or "all".
        num_images: Images behind mean and covariance.
        extractor: Name of the extractor.
        image_size: Side length in px of the extractor's input.
        resize: Rule of `Extractor.resize`.
        protocol: Protocol they were built for.
        protocol_version: Its version.
        features_seed: Seed of the choice of stored features.
        images_sha256: Checksum of the images.
    """

    dataset: str | None = None
    split: str | None = None
    num_images: Positive | None = None
    extractor: str | None = None
    image_size: Positive | None = None
    resize: str | None = None
    protocol: str | None = None
    protocol_version: Positive | None = None
    features_seed: NotNegative | None = None
    images_sha256: Checksum | None = None


class Reference(ReferenceMetadata, frozen=True, kw_only=True):
    """Reference statistics of a record: name and checksum of the file, and its metadata."""

    name: str
    sha256: Checksum | None = None


class Selection(Struct, frozen=True, kw_only=True):
    """How a checkpoint, or a second sampling time, was chosen.

    Attributes:
        rule: In words, e.g. "last checkpoint" or "least fid of 8 candidates".
        metric: Score that decided.
        search: "ternary" or "grid".
        protocol: Name and version, e.g. "embedded-v1".
        seeds: Seeds of the samples that were scored: their scores flatter the model.
        num_images: Images of each candidate.
    """

    rule: str
    metric: Metric | None = None
    search: Literal["ternary", "grid"] | None = None
    protocol: str | None = None
    seeds: tuple[NotNegative, ...] = ()
    num_images: Positive | None = None
