import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from cmrepro.files import array_sha256
from cmrepro.metrics.features import Features, extract, load_extractor
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.references import ReferenceMetadata, ReferenceStatistics, load_reference
from cmrepro.metrics.score import score

SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"
DIM = 12
PROTOCOL = dataclasses.replace(
    load_protocol("embedded"), num_images=60, kid_subsets=5, kid_subset_size=30
)


def reference_of(features: np.ndarray) -> ReferenceStatistics:
    """A reference for PROTOCOL whose stored features are all there are."""
    metadata = ReferenceMetadata(
        dataset="synthetic",
        split="all",
        num_images=len(features),
        images_sha256="",
        features_seed=0,
        protocol=PROTOCOL.name,
        protocol_version=PROTOCOL.version,
        extractor=PROTOCOL.extractor,
        image_size=PROTOCOL.image_size,
        resize=PROTOCOL.resize,
    )
    mu = features.mean(axis=0, dtype=np.float64)
    sigma = np.cov(features.astype(np.float64), rowvar=False)
    return ReferenceStatistics(mu, sigma, features, metadata)


def random_features(count: int, seed: int, scale: float = 1.0) -> Features:
    rng = np.random.default_rng(seed)
    features = scale * rng.standard_normal((count, DIM))
    logits = rng.standard_normal((count, 7))
    return Features(features.astype(np.float32), logits.astype(np.float32))


def blank(count: int) -> np.ndarray:
    return np.zeros((count, 4, 4, 3), np.uint8)


REAL = random_features(80, seed=0).features


def test_values_are_those_of_torch_fidelity() -> None:
    generated = random_features(60, seed=1, scale=0.9)
    got = score(blank(60), PROTOCOL, reference_of(REAL), features=generated)
    x, y = torch.from_numpy(generated.features), torch.from_numpy(REAL)
    stats = [
        {"mu": f.double().mean(0).numpy(), "sigma": np.cov(f.double().numpy(), rowvar=False)}
        for f in (x, y)
    ]
    shares = prc_features_to_metric(x, y, verbose=False)
    kid = kid_features_to_metric(x, y, kid_subsets=5, kid_subset_size=30, verbose=False)
    expected = {
        "fid": fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
        "is": isc_features_to_metric(torch.from_numpy(generated.logits))["inception_score_mean"],
        "kid": kid["kernel_inception_distance_mean"],
    }
    for name, value in expected.items():
        assert got.values[name] == pytest.approx(value, rel=1e-6)
    assert got.values["precision"] == shares["precision"]
    assert got.values["recall"] == shares["recall"]
    assert got.num_images == 60
    assert got.warnings == []
    assert got.features_sha256 == array_sha256(generated.features)


def test_precision_is_about_the_generated_images() -> None:
    """Generated images near the mean lie inside the real manifold but do not cover it."""
    narrow = random_features(60, seed=2, scale=0.2)
    values = score(blank(60), PROTOCOL, reference_of(REAL), features=narrow).values
    assert values["precision"] > 0.9
    assert values["recall"] < 0.1


def test_exactly_the_first_images_are_scored() -> None:
    generated = random_features(75, seed=3)
    first = Features(generated.features[:60], generated.logits[:60])
    by_default = score(blank(75), PROTOCOL, reference_of(REAL), features=generated)
    assert by_default == score(blank(60), PROTOCOL, reference_of(REAL), features=first)
    # Anything behind them may be nonsense.
    generated.features[60:] = np.nan
    assert by_default == score(blank(75), PROTOCOL, reference_of(REAL), features=generated)
    generated.features[59] = np.inf
    with pytest.raises(ValueError, match="features of image 59 are not finite"):
        score(blank(75), PROTOCOL, reference_of(REAL), features=generated)


def test_other_numbers_of_images_must_be_asked_for_and_are_warned_about() -> None:
    generated, reference = random_features(59, seed=4), reference_of(REAL)
    with pytest.raises(ValueError, match="59 images, protocol 'embedded' asks for 60"):
        score(blank(59), PROTOCOL, reference, features=generated)
    with pytest.raises(ValueError, match="59 images, num_images is 70"):
        score(blank(59), PROTOCOL, reference, num_images=70, features=generated)
    with pytest.raises(ValueError, match=r"num_images is 9, .* needs at least 10"):
        score(blank(59), PROTOCOL, reference, num_images=9, features=generated)
    fewer = score(blank(59), PROTOCOL, reference, num_images=40, features=generated)
    assert fewer.warnings == [
        "40 images where protocol embedded has 60: "
        "FID, IS, precision and recall depend on the number of images"
    ]
    singular = score(blank(59), PROTOCOL, reference, num_images=12, features=generated)
    assert singular.warnings[1:] == [
        "12 images for 12 dimensions: the covariance is singular and the FID biased",
        "KID from subsets of 12 images where protocol embedded has 30",
    ]
    regular = score(blank(59), PROTOCOL, reference, num_images=13, features=generated)
    assert not any("singular" in warning for warning in regular.warnings)


def test_features_of_other_images_and_other_references_are_refused() -> None:
    generated, reference = random_features(60, seed=5), reference_of(REAL)
    with pytest.raises(ValueError, match="features of 60 and logits of 60 images for 61 images"):
        score(blank(61), PROTOCOL, reference, features=generated)
    with pytest.raises(ValueError, match="images are float64"):
        score(blank(60) / 255, PROTOCOL, reference, features=generated)
    later = dataclasses.replace(PROTOCOL, version=PROTOCOL.version + 1)
    with pytest.raises(ValueError, match="protocol version"):
        score(blank(60), later, reference, features=generated)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_real_images_score_better_than_noise() -> None:
    """The whole way, from pixels to scores, with the bundled reference."""
    protocol = load_protocol("embedded")
    reference = load_reference(protocol)
    with np.load(SHARED / "data" / "cifar10-lossless-subset.npz", allow_pickle=False) as file:
        real = file["test_images"][:100]
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    scores = [score(images, protocol, reference, num_images=100) for images in (real, noise)]
    good, bad = (one.values for one in scores)
    assert good["fid"] < 0.7 * bad["fid"]  # 100 images leave most of their variance out of both
    assert good["kid"] < bad["kid"] / 10  # unbiased at any number of images
    assert good["is"] > bad["is"]
    assert good["recall"] > bad["recall"]
    features = extract(real, load_extractor(protocol.extractor)).features
    assert scores[0].features_sha256 == array_sha256(features)
