import re
import tomllib
from importlib import resources

import pytest
from torch_fidelity.defaults import DEFAULTS

from cmrepro.metrics.protocols import (
    load_extractor_settings,
    load_protocol,
    parse_protocol,
    protocol_names,
)


def embedded_table() -> dict[str, object]:
    text = resources.files("cmrepro.metrics").joinpath("protocols.toml").read_text()
    return tomllib.loads(text)["protocols"]["embedded"]


def test_every_protocol_loads_and_can_have_a_regular_covariance() -> None:
    assert "embedded" in protocol_names()
    for name in protocol_names():
        protocol = load_protocol(name)
        extractor = load_extractor_settings(protocol.extractor)
        assert protocol.name == name
        assert (protocol.image_size, protocol.resize) == (extractor.image_size, extractor.resize)
        # N images span at most N - 1 dimensions.
        assert protocol.num_images > extractor.feature_dim
        assert protocol.kid_subset_size <= min(protocol.num_images, protocol.reference_features)


def test_embedded_keeps_the_defaults_that_its_comments_name() -> None:
    protocol = load_protocol("embedded")
    assert protocol.is_splits == DEFAULTS["isc_splits"]
    assert protocol.is_shuffle == DEFAULTS["samples_shuffle"]
    assert protocol.is_seed == protocol.kid_seed == DEFAULTS["rng_seed"]
    assert protocol.kid_subset_size == DEFAULTS["kid_subset_size"]
    assert protocol.kid_degree == DEFAULTS["kid_kernel_poly_degree"]
    assert protocol.kid_coef0 == DEFAULTS["kid_kernel_poly_coef0"]
    assert protocol.neighborhood == DEFAULTS["prc_neighborhood"]


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'embeded'.*did you mean 'embedded'"):
        load_protocol("embeded")
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        load_extractor_settings("efficientnet-lite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_image": 5}, "unknown key 'num_image'.*did you mean 'num_images'"),
        ({"version": None}, "lacks version"),
        ({"num_images": 2000.0}, "num_images = 2000.0 is float, must be int"),
        ({"is_shuffle": 1}, "is_shuffle = 1 is int, must be bool"),
        ({"image_size": 32}, "sets image_size, which its extractor fixes"),
        ({"extractor": "inception"}, "unknown extractor 'inception'"),
    ],
)
def test_a_table_with_a_wrong_key_is_refused(change: dict[str, object], message: str) -> None:
    table = {**embedded_table(), **change}
    with pytest.raises(ValueError) as error:
        parse_protocol("mine", {key: value for key, value in table.items() if value is not None})
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
