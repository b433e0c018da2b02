"""Protocols: what comes with the package agrees with its sources; files are read strictly."""

import inspect
import pathlib
import re

import cleanfid.downloads_helper
import cleanfid.fid
import pytest
import torch_fidelity.feature_extractor_dinov2
import torch_fidelity.feature_extractor_inceptionv3
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.utils import DEFAULT_FEATURE_EXTRACTOR

from cmrepro.metrics.protocols import load_extractor_settings, load_protocol


@pytest.mark.parametrize("name", ["embedded", "torch-fidelity"])
def test_settings_are_torch_fidelitys_defaults(name: str) -> None:
    protocol = load_protocol(name)
    parts, kernel = protocol.inception_score, protocol.kernel
    assert parts and kernel
    assert parts.num_splits == DEFAULTS["isc_splits"]
    assert parts.shuffle == DEFAULTS["samples_shuffle"]
    assert parts.seed == kernel.seed == DEFAULTS["rng_seed"]
    assert kernel.subset_size == DEFAULTS["kid_subset_size"]
    assert kernel.degree == DEFAULTS["kid_kernel_poly_degree"]
    assert kernel.coef0 == DEFAULTS["kid_kernel_poly_coef0"]
    if name == "torch-fidelity":  # the embedded protocol has fewer; its comment says why
        assert kernel.num_subsets == DEFAULTS["kid_subsets"]
        inception = DEFAULT_FEATURE_EXTRACTOR["fid"]  # that of precision and recall is VGG-16
        ours = {"isc": "is", "fid": "fid", "kid": "kid"}
        theirs = {ours[m] for m, name in DEFAULT_FEATURE_EXTRACTOR.items() if name == inception}
        assert set(protocol.metrics) == theirs
    else:
        assert protocol.manifold and protocol.manifold.neighborhood == DEFAULTS["prc_neighborhood"]


def test_extractors_are_those_of_the_installed_packages() -> None:
    inception = load_extractor_settings("inception-torch-fidelity")
    fidelity = torch_fidelity.feature_extractor_inceptionv3
    assert inception.weights.url == fidelity.URL_INCEPTION_V3
    assert inception.image_size == fidelity.FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
    dinov2 = load_extractor_settings("dinov2-vitl14")
    source = inspect.getsource(torch_fidelity.feature_extractor_dinov2)
    dino = torch_fidelity.feature_extractor_dinov2.FeatureExtractorDinoV2
    assert dinov2.image_size == dino.INPUT_IMAGE_SIZE
    for values in (dinov2.mean, dinov2.std):
        assert f"({', '.join(f'255 * {value / 255:.3f}' for value in values)})" in source
    clean = load_extractor_settings("inception-clean")
    assert clean.weights.url == cleanfid.downloads_helper.inception_url
    defaults = inspect.signature(cleanfid.fid.compute_fid).parameters
    assert defaults["num_gen"].default == load_protocol("clean-fid").num_images
    adm = load_extractor_settings("inception-adm")
    assert adm.spatial_dim == 17 * 17 * 7  # positions of mixed_6/conv x channels
    assert adm.replace(name=inception.name, spatial_dim=0) == inception


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'embeded'.*did you mean 'embedded'"):
        load_protocol("embeded")
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        load_extractor_settings("efficientnet-lite")


USER_FILE = """
[weights.lab]
file = "lab.pth"
url = "https://example.org/lab.pth"
checksum = "sha256:{digits}"
source = "a lab"

[extractors.lab]
network = "inception-2015"
weights = "lab"
image_size = 299
resize = "pil-bicubic"
mean = [128.0, 128.0, 128.0]
std = [128.0, 128.0, 128.0]
feature_dim = 2048

[protocols.lab]
version = 3
source = "a lab"
extractor = "lab"
to_uint8 = "round"
num_images = 10000
metrics = ["fid"]
reference = "lab.npz"
""".format(digits="0" * 64)
IS = "\n[protocols.lab.inception_score]\n"


def test_a_users_file_adds_to_the_tables_of_the_package(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(USER_FILE)
    protocol = load_protocol(path)
    assert protocol == load_protocol(str(path))
    assert (protocol.name, protocol.version, protocol.extractor.name) == ("lab", 3, "lab")
    assert protocol.extractor.weights.url == "https://example.org/lab.pth"
    text = USER_FILE.replace('extractor = "lab"', 'extractor = "inception-adm"')
    parts = IS + 'num_splits = 2\nextractor = "inception-torch-fidelity"'
    path.write_text(text.replace('["fid"]', '["fid", "is"]') + parts)
    protocol = load_protocol(path)
    assert protocol.extractor == load_protocol("adm").extractor
    assert protocol.logits_extractor == load_protocol("torch-fidelity").extractor


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[protocols.lab]", "[protocols.embedded]", "protocols.embedded comes with the package"),
        ("[protocols.lab]", "[protocol.lab]", r"has 0 tables \[protocols.NAME\]"),
        ("[weights.lab]", "[protocols.more]\n[weights.lab]", r"has 2 tables \[protocols.NAME\]"),
        ("num_images", "num_image", "'num_image'.*did you mean 'num_images'"),
        ('weights = "lab"', 'weights = "labb"', "unknown weights 'labb': did you mean 'lab'"),
        ("inception-2015", "inception-2016", "unknown network 'inception-2016'"),
        ('url = "https://example.org/lab.pth"', "", "must have a package or a url"),
        ('["fid"]', '["fid", "fid"]', "each once"),
        ('["fid"]', '["fid", "recall"]', "'manifold' is missing, which recall needs"),
        ('["fid"]', '["fid", "is"]', "'inception_score' is missing, which is needs"),
        ('["fid"]', '["fid", "sfid"]', "gives no spatial features for sfid"),
        (
            '["fid"]\nreference = "lab.npz"',
            f'["is"]\nreference = "x"\n{IS}num_splits = 2',
            "no logits for is",
        ),
        ('"lab.npz"\n', f'"x"\n{IS}shuffle = true\nnum_splits = 2', "needs a seed"),
        ('"lab.npz"\n', f'"x"\n{IS}', "either num_splits or split_size"),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    assert old in USER_FILE
    path.write_text(USER_FILE.replace(old, new))
    with pytest.raises(ValueError) as error:
        load_protocol(path)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
