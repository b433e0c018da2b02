"""Records: their file, their identity, what is refused, merging."""

import json
import math
from pathlib import Path

import jsonschema
import msgspec
import pytest
from records_of import altered, altered_fields, demo_record, sha256_of

from cmrepro.records import (
    FOLDER,
    RunRecord,
    merge_records,
    read_record,
    read_records,
    write_record,
)

RECORD = demo_record("cd", 2, 0, 123.456789012345)
COMMITTED = Path(__file__).resolve().parents[1] / "results" / "records"


def test_a_record_survives_its_file(tmp_path):
    uncertainty = {"intervals": {"is": [2.0, 4.0]}}
    for record in (RECORD, demo_record("cd", 1, 0, 1.0, uncertainty=uncertainty)):
        assert read_record(write_record(record, tmp_path)) == record
    assert len(read_records(tmp_path)) == 2


def test_an_id_begins_with_model_nfe_protocol_and_seed():
    assert RECORD.id.startswith("demo-cifar10-cd_nfe2_embedded-v1_n2000_seed0_")
    foreign = demo_record("cd", None, None, 1.0, model="real images")
    assert foreign.id.startswith("real-images_embedded-v1_n2000_")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler.times", [80.0, 20.0]),
        ("sampler.to_uint8", "truncate"),
        ("sampler.clip_denoised", False),
        ("reference.sha256", sha256_of("other")),
        ("checkpoint.sha256", sha256_of("other")),
        ("protocol.version", 2),
        ("num_images", 1999),
        ("seed", 1),
    ],
)
def test_everything_that_makes_a_score_is_in_the_id(key, value):
    assert altered(RECORD, {key: value}).id != RECORD.id
    foreign = demo_record("cd", None, None, 1.0)  # told apart by its images alone
    assert altered(foreign, {"hashes.images": sha256_of("other")}).id != foreign.id
    assert altered(RECORD, {"hashes.images": sha256_of("other")}).id == RECORD.id


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("modle", "x", ["modle", "model"]),
        ("hashes", {}, ["images", "hashes"]),
        ("hashes.images", "ab", ["hashes.images", "ab"]),
        ("checkpoint.sha256", 3, ["checkpoint.sha256", "3"]),
        ("sampler.to_uint8", "up", ["to_uint8", "up", "round", "truncate"]),
        ("sampler.times", ["80"], ["sampler.times", "80"]),
        ("num_images", 0, ["num_images", "0"]),
        ("scores.fid", True, ["scores", "true"]),
    ],
)
def test_an_invalid_record_is_refused_by_name_here_and_by_jsonschema(key, value, words, tmp_path):
    fields = altered_fields(RECORD, {key: value})
    path = tmp_path / "x.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError) as refused:
        read_record(path)
    text = str(refused.value)
    assert str(path) in text and "\n" not in text
    assert [word for word in words if word not in text] == []
    assert not jsonschema.Draft202012Validator(msgspec.json.schema(RunRecord)).is_valid(fields)


@pytest.mark.parametrize(
    ("metric", "value"), [("precision", 1.5), ("is", 0.5), ("recall", -0.1), ("coverage", 2.0)]
)
def test_impossible_scores_are_refused(metric, value):
    with pytest.raises(ValueError, match=f"{metric} = {value}"):
        altered(RECORD, {f"scores.{metric}": value})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "x.json"),
        ('{"schema": "cmrepro-record-3"}', '"cmrepro-record-3", allowed is "cmrepro-record-4"'),
        (json.dumps(altered_fields(RECORD, {"scores.fid": math.nan})), "cannot be read as JSON"),
    ],
)
def test_a_file_without_a_record_is_refused(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_record(path)


def test_committed_records_follow_the_schema():
    validator = jsonschema.Draft202012Validator(msgspec.json.schema(RunRecord))
    for path in sorted(COMMITTED.glob("*.json")):
        assert read_record(path).id == path.stem
        validator.validate(json.loads(path.read_text()))


def test_a_folder_without_records_or_with_a_renamed_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cmrepro reproduce cifar10"):
        read_records(tmp_path)
    write_record(RECORD, tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="rename the file"):
        read_records(tmp_path)


def test_another_record_of_an_id_is_kept_unless_it_is_to_be_replaced(tmp_path):
    path = write_record(RECORD, tmp_path)
    again = altered(RECORD, {"durations_s": {"scoring": 99.0}, "provenance.cpu": "other"})
    assert write_record(again, tmp_path) == path and read_record(path) == RECORD
    other = altered(RECORD, {"scores.fid": 2.0, "hashes.features": sha256_of("other")})
    with pytest.raises(ValueError, match=r"differs in .*overwrite it") as refused:
        write_record(other, tmp_path)
    assert "scores.fid" in str(refused.value) and "hashes.features" in str(refused.value)
    write_record(other, tmp_path, overwrite=True)
    assert read_record(path) == other


def test_merged_records_lie_once_under_their_ids(tmp_path):
    records = [demo_record("cd", 1, seed, 1.0) for seed in (0, 1)]
    renamed = write_record(records[0], tmp_path / "a").rename(tmp_path / "a" / "mine.json")
    write_record(records[1], tmp_path / "a")
    merge_records([tmp_path / "a", renamed], tmp_path / "out")
    assert {record.id: record for record in read_records(tmp_path / "out")} == {
        record.id: record for record in records
    }


def test_the_commands(run, tmp_path):
    good = write_record(RECORD, tmp_path / "good")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(altered_fields(RECORD, {"num_images": 0})))
    assert run("records", "validate", tmp_path / "good")[:2] == (0, "valid records: 1\n")
    code, out, err = run("records", "validate", good, bad)
    assert (code, out, err.count("\n")) == (1, "", 1) and f"{bad}: got num_images = 0" in err
    (tmp_path / "empty").mkdir()
    for missing, words in ((tmp_path / "a.json", "no such file"), (tmp_path / "empty", "folder")):
        code, out, err = run("records", "validate", missing, bad)
        assert (code, out, err.count("\n")) == (2, "", 2)
        assert f"{missing}: " in err and words in err and "Errno" not in err
    code, out, _ = run("records", "merge", good, "--out", tmp_path)
    assert (code, out.count("\n")) == (0, 1)
    assert read_records(tmp_path / FOLDER) == [RECORD]
