import dataclasses
import inspect
import json
import pathlib
import re
import tomllib
from importlib import resources
from typing import Any

import cleanfid.downloads_helper
import cleanfid.fid
import pytest
import torch_fidelity.feature_extractor_dinov2
import torch_fidelity.feature_extractor_inceptionv3
from artifacts import ARTIFACTS
from torch_fidelity.defaults import DEFAULTS

from cmrepro.metrics.protocols import (
    METRICS,
    Protocol,
    load_extractor_settings,
    load_protocol,
    protocol_names,
)


def built_in_table(name: str) -> dict[str, Any]:
    text = resources.files("cmrepro.metrics").joinpath("protocols.toml").read_text()
    return tomllib.loads(text)["protocols"][name]


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_loads_and_can_have_a_regular_covariance(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.extractor == load_extractor_settings(protocol.extractor.name)
    # N images span at most N - 1 dimensions.
    assert protocol.num_images > protocol.extractor.feature_dim
    if protocol.kid_subset_size:
        assert protocol.reference_features
        assert protocol.kid_subset_size <= min(protocol.num_images, protocol.reference_features)
    assert hash(protocol) == hash(load_protocol(name))  # a key of the cache of extractors


def test_all_protocols_of_the_design_are_there() -> None:
    assert protocol_names() == [
        "adm",
        "clean-fid",
        "cm-cifar10",
        "edm",
        "edm2",
        "embedded",
        "fd-dinov2",
        "pytorch-fid",
        "torch-fidelity",
        "torchmetrics-floor",
    ]


@pytest.mark.parametrize("name", ["embedded", "torch-fidelity"])
def test_settings_are_torch_fidelitys_defaults(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.is_splits == DEFAULTS["isc_splits"]
    assert protocol.is_shuffle == DEFAULTS["samples_shuffle"]
    assert protocol.is_seed == protocol.kid_seed == DEFAULTS["rng_seed"]
    assert protocol.kid_subset_size == DEFAULTS["kid_subset_size"]
    assert protocol.kid_degree == DEFAULTS["kid_kernel_poly_degree"]
    assert protocol.kid_coef0 == DEFAULTS["kid_kernel_poly_coef0"]
    assert protocol.neighborhood == DEFAULTS["prc_neighborhood"]
    if name == "torch-fidelity":  # the embedded one has fewer; its comment says why
        assert protocol.kid_subsets == DEFAULTS["kid_subsets"]


def test_is_of_cm_cifar10_is_torch_fidelitys() -> None:
    ours, theirs = load_protocol("cm-cifar10"), load_protocol("torch-fidelity")
    assert ours.is_extractor == theirs.extractor != ours.extractor
    assert (ours.is_splits, ours.is_shuffle, ours.is_seed) == (10, True, 2020)
    assert theirs.is_extractor is None


def test_extractors_are_those_of_the_installed_packages() -> None:
    inception = load_extractor_settings("inception-torch-fidelity")
    fidelity = torch_fidelity.feature_extractor_inceptionv3
    assert inception.weights.url == fidelity.URL_INCEPTION_V3
    assert inception.image_size == fidelity.FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
    assert inception.weights.checksum == "sha256-prefix:" + inception.weights.file[-12:-4]
    dinov2 = load_extractor_settings("dinov2-vitl14")
    source = inspect.getsource(torch_fidelity.feature_extractor_dinov2)
    dino = torch_fidelity.feature_extractor_dinov2.FeatureExtractorDinoV2
    assert dinov2.image_size == dino.INPUT_IMAGE_SIZE
    for values in (dinov2.mean, dinov2.std):
        assert f"({', '.join(f'255 * {value / 255:.3f}' for value in values)})" in source
    assert "# dim=1024" in source and dinov2.feature_dim == 1024
    clean = load_extractor_settings("inception-clean")
    assert clean.weights.url == cleanfid.downloads_helper.inception_url
    assert clean.weights == load_extractor_settings("inception-nvidia").weights
    defaults = inspect.signature(cleanfid.fid.compute_fid).parameters
    assert defaults["mode"].default == "clean"
    assert defaults["num_gen"].default == load_protocol("clean-fid").num_images
    adm = load_extractor_settings("inception-adm")
    assert adm.spatial_dim == 17 * 17 * 7  # positions of mixed_6/conv x channels
    assert dataclasses.replace(adm, name=inception.name, spatial_dim=0) == inception


def test_weights_are_those_of_the_list_of_artifacts() -> None:
    for name in ("inception-torch-fidelity", "inception-nvidia"):
        weights = load_extractor_settings(name).weights
        assert weights.url is not None
        row = ARTIFACTS[weights.url]
        published = row["checksum"] or row["note"]
        assert weights.checksum.rpartition(":")[2] in published


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'embeded'.*did you mean 'embedded'"):
        load_protocol("embeded")
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        load_extractor_settings("efficientnet-lite")


def check_refused(folder: pathlib.Path, name: str, change: dict[str, Any], message: str) -> None:
    """A built-in table with other values (None: without) gives this one-line error."""
    table = {**built_in_table(name), **change}
    # JSON's texts, numbers, truth values and lists are TOML's.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]
    path = folder / "mine.toml"
    path.write_text("\n".join(["[protocols.mine]", *lines]))
    with pytest.raises(ValueError) as error:
        load_protocol(path)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_image": 5}, "unknown key 'num_image'.*did you mean 'num_images'"),
        ({"version": None}, "lacks version"),
        ({"num_images": 2000.0}, "num_images = 2000.0 is float, must be int"),
        ({"is_shuffle": 1}, "is_shuffle = 1 is int, must be bool"),
        ({"metrics": "fid"}, "metrics = 'fid' is str, must be a list of str"),
        ({"metrics": ["fid", 1]}, r"metrics = \['fid', 1\] is list, must be a list of str"),
        ({"reference": ["a"]}, r"reference = \['a'\] is list, must be str"),
        ({"image_size": 32}, "unknown key 'image_size'"),
        ({"extractor": "inception"}, "unknown extractor 'inception'"),
        ({"is_extractor": "inception-adn"}, "did you mean 'inception-adm'"),
        ({"to_uint8": "floor"}, "unknown to_uint8 'floor'.*round, truncate"),
        ({"metrics": ["fid", "iss"]}, "unknown metric 'iss'"),
        ({"metrics": []}, "one or more"),
        ({"metrics": ["fid", "fid"]}, "each once"),
        ({"metrics": ["fid", "is", "recall"]}, "sets kid_coef0, kid_degree.* do not use"),
        ({"metrics": ["kid"]}, "sets is_seed, is_shuffle, is_splits, neighborhood, which"),
        ({"neighborhood": None}, "lacks neighborhood"),
        ({"reference_seed": None}, "lacks reference_seed"),
        ({"is_split_size": 200}, "is_split_size and is_splits, must set one"),
        ({"is_splits": None}, "no parts of is, must set one"),
        ({"is_shuffle": False}, "sets is_seed, which"),
        ({"is_seed": None}, "lacks is_seed"),
        ({"is_extractor": "inception-nvidia"}, "inception-nvidia gives no logits for is"),
    ],
)
def test_a_table_with_a_wrong_key_is_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    check_refused(tmp_path, "embedded", change, message)


def test_settings_without_their_metric_are_refused(tmp_path: pathlib.Path) -> None:
    check_refused(tmp_path, "edm", {"is_extractor": "inception-adm"}, "sets is_extractor, which")
    check_refused(tmp_path, "edm", {"metrics": ["fid", "sfid"]}, "no spatial features for sfid")
    every = {key for keys in METRICS.values() for key in keys}
    fields = {field.name for field in dataclasses.fields(Protocol)}
    assert every <= fields


OWN = """
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
num_logits = 1008
spatial_dim = 0

[protocols.lab]
version = 3
source = "a lab"
extractor = "lab"
to_uint8 = "round"
num_images = 10000
metrics = ["fid"]
reference = "lab.npz"
""".format(digits="0" * 64)


def test_a_protocol_from_a_file_of_ones_own(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(OWN)
    protocol = load_protocol(path)
    assert protocol == load_protocol(str(path))
    assert (protocol.name, protocol.version, protocol.extractor.name) == ("lab", 3, "lab")
    assert protocol.extractor.weights.url == "https://example.org/lab.pth"
    path.write_text(OWN.replace('extractor = "lab"', 'extractor = "inception-adm"'))
    assert load_protocol(path).extractor == load_protocol("adm").extractor


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[protocols.lab]", "[protocols.embedded]", "protocols.embedded comes with the package"),
        ("[weights.lab]", "[weights.dinov2-vitl14]", "weights.dinov2-vitl14 comes with"),
        ("[protocols.lab]", "[protocol.lab]", "unknown table 'protocol'.*mean 'protocols'"),
        ("[weights.lab]", "[protocols.more]\n[weights.lab]", r"has 2 tables \[protocols.NAME\]"),
        ("[weights.lab]", "[weights]\nlab = 1\n[x]", "weights.lab is 1, must be a table"),
        ("version = 3", "version =", "cannot be read as TOML"),
        ('weights = "lab"', 'weights = "labb"', "unknown weights 'labb': did you mean 'lab'"),
        ("inception-2015", "inception-2016", "unknown network 'inception-2016'"),
        ("pil-bicubic", "bicubic", "unknown resize 'bicubic'"),
        ("mean = [128.0, 128.0, 128.0]", "mean = [128.0]", "mean has 1 values, must have 3"),
        ("mean = [128.0, 128.0, 128.0]", "mean = [128, 1, 1]", "must be a list of float"),
        ('checksum = "sha256:0', 'checksum = "md5:0', "checksum is 'md5:0.*allowed are 'sha256:'"),
        ('url = "https://example.org/lab.pth"', "", "must have a package or a url"),
        (
            'url = "https://example.org/lab.pth"\nchecksum = "sha256:%s"' % ("0" * 64),
            'package = "lab"\nchecksum = "recorded at first download"',
            "a file of a package is not downloaded; give its checksum",
        ),
    ],
)
def test_a_wrong_file_is_refused(old: str, new: str, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ValueError) as error:
        load_protocol(path)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no protocol file at"):
        load_protocol(tmp_path / "none.toml")
