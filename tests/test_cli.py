"""The command line: outputs, exit codes, and one line on stderr for every bad input."""

import json
import pathlib
import subprocess
import sys

import click
import numpy as np
import pytest
from torch.distributed.run import get_args_parser

from cmrepro import sampling
from cmrepro.cli.main import COMMANDS, cli
from cmrepro.cli.options import parse_settings

CD, EDM = "demo-cifar10-cd", "demo-cifar10-edm"
BUILD = ["references", "build", "synthetic", "--dataset", "synthetic", "--split", "all"]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH_SIZE", 4)


def refusal(run, *arguments):
    """The line on stderr of bad input."""
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)  # no progress bar has begun
    return err


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repro"], "unknown command 'repro': did you mean 're"),
        (["evaluate"], "Missing argument"),
        (["table3", "--format", "html"], "'html' is not one of 'table', 'md'"),
        (["train", "cifar10-cc"], "unknown recipe 'cifar10-cc': did you mean 'cifar10-c"),
        (["train", EDM, "--data", "nowhere"], "'nowhere'"),
        (["train", "demo-cifar10-ct", "--set", "batch_size"], "allowed is KEY=VALUE"),
        (["train", "demo-cifar10-ct", "--set", "method=cd"], "--set method"),
        (["train", "demo-cifar10-ct", "--set", "batchsize=5"], "batch_size"),
        (["sample", "demo-cifar10-cdd", "--out", "x.npz"], f"did you mean '{CD}'"),
        (["sample", CD, "--steps", "80,x", "--out", "x.npz"], "got --steps 80,x"),
        (["sample", CD, "--out", "x.png"], "ending in .npz"),
        (["sample", CD, "--device", "gpu", "--out", "x.npz"], "no device 'gpu'"),
        (["evaluate", "nothing.npz", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["evaluate", "nothing.npz"], "'nothing.npz'"),
        (["evaluate", "a.npz", "--explain", "a", "b", "--reference", "c"], "leave --reference"),
        (["evaluate", "a.npz", "--real", "c"], "--real is for --explain"),
        (["reproduce", "cifar10", "--seeds", "0"], "0 is not in the range"),
        (["report", "--check"], "no records in results"),
        (["report", "--check", "--real", "x"], "--check writes nothing"),
        (["claims", "--out", "nope"], "no folder at 'nope'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(run, *arguments)
    assert files_below(tmp_path) == []


def test_a_failed_download_is_exit_code_1(run, tmp_path, monkeypatch):
    def no_network(url, path):
        raise OSError("no network")

    monkeypatch.setattr("cmrepro.files._fetch", no_network)
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", "cifar10-train")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "cannot download" in err


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["reproduce", "cifar10"], ""),
        (["train", EDM, "--data", "synthetic"], ""),
        (["sample", CD], "x.npz"),
        (["search-times", CD], "x.safetensors"),
        (["evaluate", "synthetic"], ""),
        (["anchors", "synthetic"], ""),
        (BUILD, "x.npz"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_work(run, tmp_path, arguments, file):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"  # tests may run as root, whom no permission stops
    assert f"cannot write {below / file}" in refusal(run, *arguments, "--out", below / file)
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "arguments", [["sample", CD], ["search-times", CD], ["checkpoints", "convert", CD], BUILD]
)
def test_a_file_that_exists_is_not_replaced(run, tmp_path, arguments):
    path = tmp_path / "x.npz"
    path.write_text("precious")
    assert "--overwrite" in refusal(run, *arguments, "--out", path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("arguments", [["reproduce", "cifar10"], ["report"]])
def test_a_foreign_report_is_not_replaced(run, tmp_path, arguments):
    (tmp_path / "results").symlink_to(pathlib.Path("results").resolve())
    (tmp_path / "REPORT.md").write_text("precious")
    assert "overwrite it" in refusal(run, *arguments, "--out", tmp_path)
    assert (tmp_path / "REPORT.md").read_text() == "precious"


def test_sample_then_evaluate(run, tmp_path):
    path = tmp_path / "two.npz"
    options = ["--steps", 2, "--num-images", 12, "--seed", 3, "--out", path]
    code, out, err = run("sample", CD, *options)
    assert (code, out) == (0, f"wrote {path}\nwrote {path}.provenance.json\n"), err
    assert f"{path}.provenance.json" in map(str, tmp_path.iterdir())
    images = np.load(path)["arr_0"]
    assert images.shape == (12, 32, 32, 3)
    options = ["--num-images", 12, "--out", tmp_path, "--format", "json"]
    code, out, err = run("evaluate", path, *options, "--intervals")
    assert code == 0, err
    [row] = json.loads(out)
    written = tmp_path / "results" / "records" / f"{row['record']}.json"
    assert f"wrote {written}\n" in err
    record = json.loads(written.read_text())
    assert (record["model"], record["nfe"], record["seed"]) == (CD, 2, 3)
    assert record["scores"]["fid"] == row["fid"]
    assert record["uncertainty"]["intervals"]["is"] == [row["is_low"], row["is_high"]]
    assert row["is_low"] < row["is"] < row["is_high"]
    assert "the covariance is singular" in err
    refused = refusal(run, "evaluate", path, *options, "--nfe", 1)
    assert "got nfe = 1" in refused and "say 2; leave it out" in refused


PROTOCOL = """
[protocols.few]
version = 1
source = "this test"
extractor = "efficientnet-lite0"
to_uint8 = "round"
num_images = 12
metrics = ["fid"]
reference = "{reference}"
"""


def test_several_protocols_and_the_explanation_of_two(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "set.npz", arr_0=images)
    few, reference = tmp_path / "few.toml", tmp_path / "reference.npz"
    few.write_text(PROTOCOL.format(reference=reference))
    assert run(*BUILD, "--protocol", few, "--out", reference)[0] == 0
    arguments = ["evaluate", tmp_path / "set.npz", "--out", tmp_path, "--format", "json"]
    both = ["--protocol", "embedded", "--protocol", few, "--num-images", 12]
    code, out, err = run(*arguments, *both)
    assert code == 0, err
    first, second = json.loads(out)
    assert [row["record"].split("_")[1] for row in (first, second)] == ["embedded-v1", "few-v1"]
    code, out, err = run(*arguments, "--explain", few, few)
    assert code == 0, err
    [row] = json.loads(out)
    assert (row["change"], row["fid"]) == ("as it is", second["fid"])


def test_lists_as_json(run, tmp_path):
    for command, at_least in (
        (["claims", "--out", tmp_path], 60),
        (["deviations"], 40),
        (["table3", "--variant", "both"], 13),
        (["checkpoints", "list"], 25),
        (["references", "list"], 10),
        (["recipe"], 11),
    ):
        code, out, err = run(*command, "--format", "json")
        assert code == 0, err
        assert len(json.loads(out)) >= at_least


def test_an_unexpected_error_is_exit_code_1_and_a_traceback_with_debug(run, monkeypatch):
    def broken():
        raise RuntimeError("boom")

    monkeypatch.setattr("cmrepro.cli.tables.deviations_rows", broken)
    assert run("deviations") == (1, "", "cmrepro: RuntimeError: boom\n")
    with pytest.raises(RuntimeError):
        run("--debug", "deviations")


def test_settings_add_up_and_have_types():
    assert parse_settings(["total_steps=6,ema_rate=0.9", "solver=euler", "s0=none"]) == {
        "total_steps": 6,
        "ema_rate": 0.9,
        "solver": "euler",
        "s0": None,
    }
    with pytest.raises(ValueError, match=r"total_steps=7.*each key once"):
        parse_settings(["total_steps=6", "total_steps=7"])


@pytest.mark.parametrize("arguments", [[], ["records"]])
def test_without_a_command_there_is_its_help(run, arguments):
    _, expected, _ = run(*arguments, "--help")
    assert run(*arguments) == (2, "", expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f" {command} [OPTIONS]" in out


@pytest.mark.parametrize(
    "arguments",
    [["table3"], ["claims"], ["records", "validate", "results/records"], ["report", "--check"]],
)
def test_tables_and_the_report_need_no_torch(arguments):
    missing = ["torch"] if arguments[0] in ("claims", "report") else ["torch", "pandas", "numpy"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"  # as if not installed
        f"from cmrepro.cli.main import cli; cli({arguments})"
    )
    assert subprocess.check_output([sys.executable, "-c", code])


def test_wrong_usage_of_heavy_commands_needs_no_torch():
    """So that it is told within a second."""
    commands = {
        ("evaluate", "x.npz", "--real", "c"): "UsageError",
        ("sample", CD, "--out", "x.png"): "BadParameter",
        ("search-times", CD, "--method", "binary"): "BadParameter",
        ("reproduce",): "MissingParameter",
        ("redo", "no-such-record"): "ValueError",
        ("train", "cifar10-cc"): "ValueError",
        ("train", "cifar10-ct", "--set", "batch_size"): "ValueError",
        ("checkpoints", "convert", CD, "--dtype", "int8"): "BadParameter",
    }
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from click.testing import CliRunner\n"
        "from cmrepro.cli.main import cli\n"
        "call = lambda words: CliRunner().invoke(cli, words, standalone_mode=False)\n"
        f"print(*(type(call(words).exception).__name__ for words in {[*commands]}))"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert shown.split() == [*commands.values()]


def test_no_option_is_one_of_torchrun_in_short():
    """It takes an abbreviation, such as --num, for its own even behind `-m cmrepro`."""
    parser = get_args_parser()
    for name, group in (
        ("sample", None),
        ("evaluate", None),
        ("train", None),
        ("references", "build"),
    ):
        command = cli.get_command(click.Context(cli), name)
        command = command if group is None else command.commands[group]
        for option in (option for parameter in command.params for option in parameter.opts):
            if option.startswith("--"):
                words = ["-m", "cmrepro", name, option, "1"]
                assert parser.parse_args(words).training_script_args == words[2:]
