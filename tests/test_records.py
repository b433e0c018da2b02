"""Records: their schema, what they refuse, that a file gives back what was written, merging."""

import copy
import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_of import demo_record, sha256_of

from cmrepro.records3 import (
    FOLDER,
    SCHEMA,
    RunRecord,
    find_record,
    merge_records,
    read_record,
    read_records,
    record_problems,
    record_schema,
    write_record,
)

COMMITTED = pathlib.Path(__file__).resolve().parents[1] / "results" / "records"


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
        ({"fid": math.nan}, "fid = NaN, allowed is a number from -1e-06 to inf"),
        ({"fid": math.inf}, "fid = Infinity"),
        ({"fid": -1.0}, "fid = -1"),
        ({"precision": 1.5}, "precision = 1.5, allowed is a number from 0 to 1"),
        ({"is": 0.5}, "is = 0.5"),
        ({"fid": True}, "fid = true, allowed is number"),
        ({"fdd": 1.0}, "unknown keys in scores: fdd; known: fid, "),
    ],
)
def test_impossible_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        demo_record("cd", 1, 0, 1.0, scores=scores)


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match='schema = "cmrepro-record-0", allowed is "cmrepro-'):
        demo_record("cd", 1, 0, 1.0, schema="cmrepro-record-0")


def test_the_schema_and_the_class_have_the_same_fields():
    schema = record_schema()
    fields = {field.name for field in dataclasses.fields(RunRecord)}
    assert fields == schema["properties"].keys() == set(schema["required"])
    assert schema["properties"]["schema"] == {"const": SCHEMA}
    assert schema["$id"] == SCHEMA
    jsonschema.Draft202012Validator.check_schema(schema)


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all below it."""
    yield schema
    named = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    others = [schema.get(key) for key in ("items", "additionalProperties")]
    for part in [*named, *(part for part in others if isinstance(part, dict))]:
        yield from subschemas(part)


def test_the_schema_uses_only_what_the_package_checks():
    checked = {"$ref", "type", "const", "enum", "pattern", "minimum", "maximum", "items", "anyOf"}
    checked |= {"properties", "required", "additionalProperties"}
    of_people = {"$schema", "$id", "$defs", "title", "description"}
    for schema in subschemas(record_schema()):
        assert schema.keys() <= checked | of_people
        for form in schema.get("anyOf", ()):  # "empty, or with these keys"
            assert form == {"maxProperties": 0} or form.keys() == {"required"}


def changed(path: str, value: Any = None) -> dict[str, Any]:
    """The fields of a good record, one of them set, or deleted where the value is None."""
    fields = copy.deepcopy(dataclasses.asdict(demo_record("cd", 2, 0, 1.0)))
    *folders, name = path.split("/")
    inner = fields
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return fields


BROKEN = {
    "missing keys: seed": changed("seed"),
    "unknown keys: sede; known: schema, ": changed("sede", 0),
    "missing keys in hashes: images": changed("hashes/images"),
    "unknown keys in hashes: weights; ": changed("hashes/weights", sha256_of("")),
    'got hashes.images = "ab", allowed is 64 hex': changed("hashes/images", "ab"),
    'got hashes.noise = "FF': changed("hashes/noise", "F" * 64),
    "got checkpoint.sha256 = 3, allowed is string": changed("checkpoint/sha256", 3),
    "missing keys in checkpoint: sha256": changed("checkpoint/sha256"),
    "missing keys in sampler: to_uint8": changed("sampler/to_uint8"),
    'got sampler.to_uint8 = "up", allowed is "round" or ': changed("sampler/to_uint8", "up"),
    'got sampler.times[0] = "80", allowed is number': changed("sampler/times", ["80"]),
    "missing keys in comparable: images_seen": changed("comparable/images_seen"),
    'got comparable.scale = "huge", allowed is "demo" or': changed("comparable/scale", "huge"),
    "missing keys in comparable.selection: rule": changed("comparable/selection/rule"),
    "got num_images = 0, allowed is a number from 1": changed("num_images", 0),
    'got model = "", allowed is ^.+$': changed("model", ""),
    "got scores.recall = 1.25": changed("scores/recall", 1.25),
    'got warnings = "none", allowed is array': changed("warnings", "none"),
    "got uncertainty.resamples = true, allowed is integer": changed(
        "uncertainty", {"resamples": True}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_breaks_the_schema_is_refused_here_and_by_jsonschema(message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(BROKEN[message]))
    [problem] = record_problems(path)
    assert problem.startswith(message)
    validator = jsonschema.Draft202012Validator(record_schema())
    assert len(list(validator.iter_errors(BROKEN[message]))) == 1
    with pytest.raises(ValueError, match=r"x\.json is not a record: ") as refused:
        read_record(path)
    assert "\n" not in str(refused.value)


# JSON Schema takes 2.0 for an integer, a record does not: floats here are no whole numbers.
FINITE = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
VALUES = st.recursive(  # of JSON, which has no NaN and no infinity
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(fields: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a record and of what is in it."""
    for key, value in fields.items() if isinstance(fields, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@settings(deadline=None)  # other work on the machine
@given(st.data())
def test_whatever_stands_in_a_record_is_decided_as_by_jsonschema(data):
    fields = json.loads(json.dumps(dataclasses.asdict(demo_record("cd", 2, 0, 1.0))))
    *path, key = data.draw(st.sampled_from(sorted(places(fields))))
    inner = fields
    for part in path:
        inner = inner[part]
    inner[key] = data.draw(VALUES)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(fields))
        file.flush()
        problems = record_problems(pathlib.Path(file.name))
    assert not any("\n" in problem for problem in problems)
    validator = jsonschema.Draft202012Validator(record_schema())
    assert validator.is_valid(fields) == (problems == [])


def test_good_records_pass_here_and_with_jsonschema(tmp_path):
    validator = jsonschema.Draft202012Validator(record_schema())
    foreign = demo_record("cd", None, None, 1.0, checkpoint={}, sampler={}, model="photos")
    paths = [write_record(r, tmp_path) for r in (demo_record("cd", 2, 0, 1.0), foreign)]
    paths += sorted(COMMITTED.glob("*.json"))
    for path in paths:
        assert record_problems(path) == []
        validator.validate(json.loads(path.read_text()))


def test_a_number_that_json_does_not_have_is_refused_anywhere(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(changed("checkpoint/recipe/learning_rate", math.nan)))
    [problem] = record_problems(path)
    assert problem.startswith("got checkpoint.recipe.learning_rate = NaN")
    path.write_text(json.dumps(changed("checkpoint/recipe/learning_rate", 10**400)))
    assert record_problems(path) == []  # larger than any float, and still a number of JSON


def test_an_unknown_version_is_the_only_problem_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(changed("hashes/images") | {"schema": "cmrepro-record-9"}))
    [problem] = record_problems(path)
    assert 'got schema = "cmrepro-record-9", allowed is "cmrepro-record-3"; run' in problem


def test_a_record_that_breaks_the_schema_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"is not a record: got hashes\.images"):
        write_record(
            demo_record("cd", 1, 0, 1.0, hashes=changed("hashes/images", "x")["hashes"]), tmp_path
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1', "null"])
def test_what_is_no_record_is_refused_with_its_path(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a record"):
        read_record(path)


def test_a_renamed_record_is_refused(tmp_path):
    write_record(demo_record("cd", 1, 0, 1.0), tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="rename the file"):
        read_records(tmp_path)


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(ValueError, match="cmrepro reproduce cifar10"):
        read_records(tmp_path)


def test_a_record_is_found_by_path_or_id(tmp_path, monkeypatch):
    record = demo_record("cd", 1, 0, 1.0)
    path = write_record(record, tmp_path / "results" / "records")
    monkeypatch.chdir(tmp_path)
    assert find_record(path) == find_record(record.id) == record
    with pytest.raises(ValueError, match=f"did you mean '{record.id}'"):
        find_record(record.id.replace("seed0", "seed1"))


@pytest.fixture
def elsewhere(tmp_path):
    """Records of another machine: one under a name of its own."""
    records = [demo_record("cd", 1, seed, 1.0) for seed in (0, 1)]
    paths = [write_record(record, tmp_path / "elsewhere") for record in records]
    return records, [paths[0].rename(tmp_path / "elsewhere" / "mine.json"), paths[1]]


def test_merged_records_lie_once_under_their_ids(tmp_path, elsewhere):
    records, (renamed, _) = elsewhere
    again = dataclasses.replace(records[0], durations_s={"scoring": 99.0})  # another machine
    write_record(again, tmp_path / "third")
    out = tmp_path / "out"
    written = merge_records([tmp_path / "elsewhere", renamed, tmp_path / "third"], out)
    assert sorted(path.stem for path in written) == [record.id for record in records]
    assert read_records(out) == records
    assert merge_records([tmp_path / "third"], out) == []
    assert read_records(out) == records


def test_records_that_contradict_each_other_are_refused(tmp_path, elsewhere):
    records, (renamed, _) = elsewhere
    other = dataclasses.replace(
        records[0],
        scores=records[0].scores | {"fid": 2.0},
        hashes=records[0].hashes | {"features": sha256_of("other")},
    )
    path = write_record(other, tmp_path / "third")
    with pytest.raises(ValueError) as refused:
        merge_records([tmp_path / "elsewhere", path], tmp_path / "out")
    text = str(refused.value)
    assert str(renamed) in text and str(path) in text
    assert "differ in scores.fid, hashes.features;" in text
    assert not (tmp_path / "out").exists()
    write_record(records[0], tmp_path / "out")  # what is there counts too
    with pytest.raises(ValueError, match=r"differ in scores\.fid"):
        merge_records([path], tmp_path / "out")


def test_validate_names_every_problem(run, tmp_path):
    good = write_record(demo_record("cd", 1, 0, 1.0), tmp_path / "good")
    assert run("records", "validate", good)[:2] == (0, "valid records: 1\n")
    bad = tmp_path / "bad.json"
    fields = changed("hashes/images", "ab")
    bad.write_text(json.dumps(fields | {"num_images": 0}))
    worse = tmp_path / "worse.json"
    worse.write_text("{")
    code, out, err = run("records", "validate", tmp_path / "good", bad, worse)
    assert (code, out) == (1, "")
    first, second, third = err.splitlines()
    assert first.startswith(f"{bad}: got num_images = 0, allowed")
    assert second.startswith(f'{bad}: got hashes.images = "ab", allowed')
    assert third.startswith(f"{worse}: it is no JSON (Expecting property name")
    code, _, err = run("records", "validate", tmp_path / "nope.json", tmp_path / "empty", worse)
    assert (code, err.count("\n")) == (2, 3)
    assert f"{tmp_path / 'nope.json'}: no such file\n" in err


def test_an_unknown_record_names_the_nearest_three_and_how_to_list_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        write_record(demo_record("cd", 1, seed, 1.0), FOLDER)
    with pytest.raises(ValueError, match=f"5 are known; 'ls {FOLDER}' lists them") as caught:
        find_record(demo_record("cd", 2, 0, 1.0).id)
    assert str(caught.value).count("seed") == 4
    with pytest.raises(ValueError, match="is not a record: it is no JSON"):
        (tmp_path / "x.npz").write_bytes(b"PK\xc4")
        find_record("x.npz")


def test_merge_writes_below_results(run, tmp_path, elsewhere):
    records, paths = elsewhere
    code, out, _ = run("records", "merge", *paths, "--out", tmp_path)
    assert (code, out.count("\n")) == (0, 2)
    assert read_records(tmp_path / "results" / "records") == records
    write_record(dataclasses.replace(records[0], warnings=["x"]), tmp_path / "third")
    code, _, err = run("records", "merge", tmp_path / "third", "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "differ in warnings" in err


@pytest.mark.parametrize("command", ["validate", "merge"])
def test_an_empty_folder_is_bad_input(run, tmp_path, command):
    for place, message in ((tmp_path, "no records in this folder"), (tmp_path / "x", "no such f")):
        code, _, err = run("records", command, place)
        assert (code, err.count("\n")) == (2, 1)
        assert str(place) in err
        assert message in err
