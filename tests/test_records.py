"""Records: what they refuse, and that a file gives back what was written."""

import dataclasses
import json
import math

import pytest
from records_of import demo_record

from cmrepro.records import read_record, read_records, write_record


def test_a_record_survives_its_file(tmp_path):
    record = demo_record("cd", 2, 0, 123.456789012345)
    path = write_record(record, tmp_path)
    assert path.name == "demo-cifar10-cd_nfe2_embedded-v1_n2000_seed0.json"
    assert read_records(tmp_path) == [record]


def test_foreign_images_have_neither_evaluations_nor_seed_in_their_name():
    record = demo_record("cd", None, None, 1.0, model="real images")
    assert record.id == "real-images_embedded-v1_n2000"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"fid": math.nan}, "fid = nan"),
        ({"fid": -1.0}, "fid = -1"),
        ({"precision": 1.5}, "precision = 1.5"),
        ({"is": 0.5}, "is = 0.5"),
        ({"fdd": 1.0}, "unknown metric 'fdd'"),
    ],
)
def test_impossible_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        demo_record("cd", 1, 0, 1.0, scores=scores)


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema 'cmrepro-record-0'"):
        demo_record("cd", 1, 0, 1.0, schema="cmrepro-record-0")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1', "null"])
def test_what_is_no_record_is_refused_with_its_path(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a record"):
        read_record(path)


def test_missing_and_unknown_keys_are_named(tmp_path):
    fields = dataclasses.asdict(demo_record("cd", 1, 0, 1.0))
    del fields["seed"]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(fields | {"sede": 0}))
    with pytest.raises(ValueError, match=r"missing keys \['seed'\], unknown keys \['sede'\]"):
        read_record(path)


def test_a_renamed_record_is_refused(tmp_path):
    write_record(demo_record("cd", 1, 0, 1.0), tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="rename the file"):
        read_records(tmp_path)


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ValueError, match="cmrepro reproduce cifar10"):
        read_records(tmp_path)
