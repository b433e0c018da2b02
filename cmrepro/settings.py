"""Settings of a run, as TOML tables, checkpoint headers and records hold them."""

from typing import Annotated, Literal, get_args

from msgspec import Meta

from cmrepro.files import RECORDED
from cmrepro.schema import Checksum, NotNegative, Positive, Share, Struct

Metric = Literal["fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage"]
METRICS: tuple[Metric, ...] = get_args(Metric)
MANIFOLD_METRICS: tuple[Metric, ...] = ("precision", "recall", "density", "coverage")
Rounding = Literal["round", "truncate"]
Precision = Literal["fp32", "bf16", "fp16"]
EditTask = Literal[
    "inpainting", "colorization", "super-resolution", "strokes", "denoising", "interpolation"
]
Method = Literal[
    "edm", "cd", "ct", "pd", "continuous-cd", "continuous-cd-stopgrad", "continuous-ct"
]
Variant = Literal["paper", "released"]
Scale = Literal["demo", "paper"]
Initialisation = Literal["random", "teacher"]
_CHECKSUMS = "sha256:[0-9a-f]{64}|sha256-prefix:[0-9a-f]{8,64}"


class Recipe(Struct, frozen=True, kw_only=True):
    """Everything needed to train one model: a column of Table 3 and what the table leaves out."""

    name: str  # its key in recipes.toml
    variant: Variant  # "paper", or "released" for the settings of the official code
    scale: Scale = "paper"  # "paper", or "demo" for a network that a laptop samples
    stands_for: str  # the paper's model that it trains or imitates, e.g. "cifar10-cd"
    # "edm" (denoising, the teacher), "cd" (Algorithm 2), "ct" (Algorithm 3), "pd" (one halving of
    # progressive distillation), or in continuous time (Appendix B)
    method: Method
    dataset: str  # name of the training images
    network: str  # name of a network preset
    initialisation: Initialisation  # "random", or "teacher" for the teacher's weights
    optimizer: Literal["radam", "muon"]
    learning_rate: Annotated[float, Meta(gt=0)]  # of the first step; constant without the next two
    inverse_sqrt_after: Positive | None = None  # images after which it falls as 1 / sqrt(images)
    linear_decay_share: Annotated[float, Meta(gt=0, le=1)] | None = None  # last, to rate 0
    batch_size: Positive  # global batch, images
    ema_rate: Share  # decay per step of the average that is sampled from
    total_steps: Positive  # optimizer steps
    dropout: Share  # probability
    horizontal_flip: bool  # flip each image with probability 1/2
    mixed_precision: bool  # train in half precision
    num_gpus: Positive  # devices of the source; by default a forward pass has the images of one
    sigma_min: float  # the paper's epsilon
    sigma_max: float  # the paper's T
    rho: float  # exponent of the time grid
    sigma_data: float  # standard deviation of the data
    mu_form: Variant  # divisor of mu(k): "paper" or "released"
    distance: str | None = None  # d of the consistency losses
    weighting: Literal["1 / c_out^2"] | None = None  # lambda(t) of CD and CT; 1 by default
    solver: str | None = None  # ODE solver of CD
    target_ema: Share | None = None  # mu, where fixed
    mu0: Share | None = None  # mu at the start, where it follows mu(k)
    num_scales: Positive | None = None  # N, where fixed; of PD the steps of the student
    s0: Positive | None = None  # N at the start, where it follows N(k)
    s1: Positive | None = None  # N - 1 at the end, where it follows N(k)
    schedule_steps: Positive | None = None  # K of N(k), where it differs from total_steps
    two_step_index: Positive | None = None  # published second sampling time, on the time grid

    def __post_init__(self) -> None:
        for key in _UNUSED_FIELDS[self.method]:
            if (value := getattr(self, key)) is not None:
                method = f"recipe '{self.name}', which {self.method.upper()}"
                raise ValueError(f"got {key} = {value} for {method} does not have; leave it out")
        if self.method == "pd" and self.num_scales is None:
            raise ValueError(f"recipe '{self.name}' needs num_scales, the steps of its student")
        if "num_scales" in _UNUSED_FIELDS[self.method] or self.method == "pd":
            return
        fixed, scheduled = self.num_scales is not None, self.s0 is not None
        if fixed == scheduled or scheduled != (self.s1 is not None):
            raise ValueError(f"recipe '{self.name}' needs either num_scales or s0 and s1")
        if (self.target_ema is None) == (self.mu0 is None) or (self.mu0 and not scheduled):
            needed = "either target_ema or, with s0 and s1, mu0"
            raise ValueError(f"recipe '{self.name}' needs {needed}")
        if self.s0 and self.s1 and self.s0 > self.s1 + 1:
            raise ValueError(f"got s0 = {self.s0}, s1 = {self.s1}; needed is s0 <= s1 + 1")
        last = (self.num_scales or (self.s1 or 0) + 1) - 1
        if (index := self.two_step_index) and index >= last:
            raise ValueError(f"got two_step_index = {index}; allowed is 1 to {last - 1}")


_SCHEDULES = ("target_ema", "mu0", "num_scales", "s0", "s1", "schedule_steps", "two_step_index")
_CONTINUOUS = ("solver", "weighting", *_SCHEDULES)
_UNUSED_FIELDS: dict[Method, tuple[str, ...]] = {
    "edm": ("distance", *_CONTINUOUS),
    "cd": (),
    "ct": ("solver",),
    "pd": tuple(field for field in _CONTINUOUS if field != "num_scales"),
    "continuous-cd": _CONTINUOUS,
    "continuous-cd-stopgrad": _CONTINUOUS,
    "continuous-ct": _CONTINUOUS,
}


class SamplerSettings(Struct, frozen=True, kw_only=True):
    """Sampler: the way from noise to images."""

    # Algorithm 1 (for f), EDM's sampler (for D) or Euler's method (for D distilled progressively)
    algorithm: Literal["multistep", "heun", "euler"]
    times: tuple[float, ...]  # at which f is evaluated, or the solver's grid; decreasing
    to_uint8: Rounding = "round"  # of 127.5 x + 127.5; the official code truncates
    clip_denoised: bool = True  # clip the result of each evaluation to [-1, 1]
    precision: Precision = "fp32"  # of the network's convolutions and products

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        points = len(self.times)
        return {"multistep": points, "heun": 2 * points - 1, "euler": points - 1}[self.algorithm]

    @property
    def stages(self) -> list["SamplerSettings"]:
        """Sampler of the images after each evaluation of Algorithm 1; other methods have one."""
        if self.algorithm != "multistep":
            return [self]
        return [self.replace(times=self.times[:n]) for n in range(1, len(self.times) + 1)]


class Weights(Struct, frozen=True, kw_only=True):
    """A file of an extractor's weights."""

    name: str  # its key in [weights] of protocols.toml
    file: str  # name of the file, in the package or in the cache's folder `weights`
    # "sha256:…", "sha256-prefix:…" (first digits), or, of a download, "recorded at first download"
    checksum: Annotated[str, Meta(pattern=f"^({_CHECKSUMS}|{RECORDED})$")]
    source: str  # publisher
    package: str | None = None  # import name of the package that has it; None for a download
    url: str | None = None  # address of a download; None for a file in a package

    def __post_init__(self) -> None:
        if (self.package is None) == (self.url is None):
            raise ValueError(f"weights '{self.name}' must have a package or a url, and not both")


class Extractor(Struct, frozen=True, kw_only=True):
    """Image network that gives features and logits."""

    name: str  # its key in protocols.toml
    network: Literal["efficientnet-lite0", "inception-2015", "inception-torchscript", "dinov2"]
    weights: Weights  # file of its weights
    image_size: Positive  # side length in px of its input
    # "bilinear": half-pixel centres, antialiased when shrinking; "pytorch-bilinear": the same, not
    # antialiased; "tensorflow1-bilinear": corner-aligned origin, not antialiased; "pil-bicubic":
    # Pillow on float32 channels, antialiased when shrinking, clipped to 0-255, not rounded
    resize: Literal["bilinear", "tensorflow1-bilinear", "pytorch-bilinear", "pil-bicubic"]
    mean: tuple[float, float, float]  # subtracted from red, green, blue (0-255)
    std: tuple[float, float, float]  # divides them after that
    feature_dim: Positive  # number of features D
    num_logits: NotNegative = 0  # number of class logits; 0 without any
    spatial_dim: NotNegative = 0  # number of spatial features (sFID); 0 without any


class InceptionScoreSettings(Struct, frozen=True, kw_only=True):
    """Settings of IS."""

    num_splits: Positive | None = None  # number of parts; exclusive with `split_size`
    split_size: Positive | None = None  # images in each part
    shuffle: bool = False  # shuffle the images before they are split
    seed: NotNegative | None = None  # seed of that shuffle
    extractor: Extractor | None = None  # gives the logits, where it is not the protocol's

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
    """Settings of precision, recall, density and coverage."""

    neighborhood: Positive  # k: a ball reaches to the k-th nearest neighbour


class StoredFeatures(Struct, frozen=True, kw_only=True):
    """Real images whose features are stored: how many, and the seed of their choice."""

    num_images: Positive
    seed: NotNegative


class Protocol(Struct, frozen=True, kw_only=True):
    """A named, versioned way to score a sample set."""

    name: str  # name of the protocol
    version: Positive  # raised by every change that moves a score
    source: str  # whose way of scoring it is
    extractor: Extractor  # network that gives the features
    to_uint8: Literal["round", "truncate", "as given"]  # rule of its tools; "as given": none
    num_images: Positive  # number of images that a score needs
    metrics: tuple[Metric, ...]  # its metrics, in the order of tables
    reference: str  # name of the reference statistics used by default
    dataset: str | None = None  # the only data set that it is defined for, e.g. "cifar10-train"
    stored_features: StoredFeatures | None = None  # real features of KID and the manifold metrics
    inception_score: InceptionScoreSettings | None = None  # settings of IS
    kernel: KernelSettings | None = None  # settings of KID
    manifold: ManifoldSettings | None = None  # settings of precision, recall, density and coverage

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
        for metric, outputs, number in (
            ("is", "logits", self.logits_extractor.num_logits),
            ("sfid", "spatial features", self.extractor.spatial_dim),
        ):
            if metric in self.metrics and not number:
                fix = f"choose an extractor that does, or remove {metric}"
                raise ValueError(f"the extractor gives no {outputs} for {metric}; {fix}")


_METRIC_SETTINGS: dict[Metric, tuple[str, ...]] = {
    "is": ("inception_score",),
    "kid": ("kernel", "stored_features"),
    **dict.fromkeys(MANIFOLD_METRICS, ("manifold", "stored_features")),
}


class ReferenceMetadata(Struct, frozen=True, kw_only=True):
    """Contents of reference statistics; None where the file does not say."""

    dataset: str | None = None  # data set, e.g. "cifar10"
    split: str | None = None  # "train", "test" or "all"
    num_images: Positive | None = None  # images behind mean and covariance
    extractor: str | None = None  # name of the extractor
    image_size: Positive | None = None  # side length in px of the extractor's input
    resize: str | None = None  # rule of `Extractor.resize`
    protocol: str | None = None  # protocol they were built for
    protocol_version: Positive | None = None  # its version
    features_seed: NotNegative | None = None  # seed of the choice of stored features
    images_sha256: Checksum | None = None  # checksum of the images

    @property
    def dataset_split(self) -> str | None:
        """Data set and split, e.g. "cifar10-train"."""
        return self.dataset and f"{self.dataset}-{self.split}"


class Reference(ReferenceMetadata, frozen=True, kw_only=True):
    """Reference statistics of a record: name and checksum of the file, and its metadata."""

    name: str
    sha256: Checksum | None = None


class Selection(Struct, frozen=True, kw_only=True):
    """Choice of a checkpoint or of a second sampling time."""

    rule: str  # in words, e.g. "last checkpoint" or "least fid of 8 candidates"
    metric: Metric | None = None  # score that decided
    search: Literal["ternary", "grid"] | None = None  # "ternary" or "grid"
    protocol: str | None = None  # name and version, e.g. "embedded-v1"
    seeds: tuple[NotNegative, ...] = ()  # of the scored samples, whose scores flatter the model
    num_images: Positive | None = None  # images of each candidate
