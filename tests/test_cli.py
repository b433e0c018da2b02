"""The command line: what it prints, and one line with exit code 2 for every bad input."""

import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmrepro import sampling
from cmrepro.checkpoints.io import bundled_checkpoints
from cmrepro.metrics.protocols import load_protocol
from cmrepro.metrics.reference_files import write_statistics
from cmrepro.metrics.reference_registry import bundled_references
from cmrepro.metrics.references import ReferenceStatistics

CD, EDM = "demo-cifar10-cd", "demo-cifar10-edm"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH_SIZE", 4)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "cifar10-cc"], "unknown recipe 'cifar10-cc': did you mean 'cifar10-c"),
        (["train", "demo-cifar10-edm", "--data", "nowhere"], "no data set at 'nowhere'"),
        (["train", "demo-cifar10-edm"], "give the recipe's data, or others, with --data"),
        (["train", "demo-cifar10-edm", "--set", "batchsize=3"], "did you mean 'batch_size'"),
        (["train", "demo-cifar10-edm", "--set", "batch_size"], "allowed is KEY=VALUE"),
        (["recipe", "show", "demo-cifar10-cc"], "did you mean 'demo-cifar10-c"),
        (["recipe", "show", "cifar10-ct", "--variant", "release"], "did you mean 'released'"),
        (["train", "demo-cifar10-cd", "--data", "synthetic"], "needs a teacher"),
        (["sample", "demo-cifar10-cdd", "--out", "x.npz"], f"did you mean '{CD}'"),
        (["sample", CD, "--steps", "0", "--out", "x.npz"], "from 80: --steps t1,t2,…"),
        (["sample", CD, "--steps", "3", "--out", "x.npz"], "from 80: --steps t1,…,t3"),
        (["sample", EDM, "--steps", "1", "--out", "x.npz"], "got --steps 1 for an EDM denoiser"),
        (["sample", CD, "--steps", "80,80", "--out", "x.npz"], "they must decrease"),
        (["sample", CD, "--steps", "0.8,80", "--out", "x.npz"], "they must decrease"),
        (["sample", CD, "--steps", "80,x", "--out", "x.npz"], "got --steps 80,x"),
        (["sample", CD, "--num", "0", "--out", "x.npz"], "at least 1 image"),
        (["sample", CD, "--out", "x.png"], "ending in .npz"),
        (["evaluate", __file__], "test_cli.py' is no data set; allowed are cifar10-train, "),
        (["doctor", "nothing.npz"], "nothing at 'nothing.npz'"),
        (["evaluate", "nothing.npz"], "no data set at 'nothing.npz'"),
        (["evaluate", "nothing.npz", "--protocol", "embeded"], "did you mean 'embedded'"),
        (["reproduce", "cifar-10"], "did you mean 'cifar10'"),
        (["reproduce", "cifar10", "--profile", "demos"], "did you mean 'demo'"),
        (["reproduce", "cifar10", "--num-samples", "0"], "got 0 images"),
        (["reproduce", "cifar10", "--seeds", "0"], "0 seeds"),
        (["table3", "--variant", "papers"], "did you mean 'paper'"),
        (["table3", "--format", "html"], "unknown format 'html'"),
        (["report", "--check"], "no records in results"),
        (["claims", "--out", "nope"], "no folder at 'nope'; give with --out the one that holds"),
        (["checkpoints", "inspect", "nothing"], "unknown checkpoint"),
        (["evaluate"], "Missing argument"),
        (["repro"], "No such command 'repro'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", CD, "--out", "x.npz"],
        ["evaluate", "x.npz"],
        ["train", "demo-cifar10-edm"],
        ["search-times", CD],
        ["reproduce", "cifar10"],
        ["references", "build", "x", "--dataset", "x", "--split", "x", "--out", "x.npz"],
        ["doctor", "x.npz"],
    ],
)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "got gpu; allowed are cpu, cuda, cuda:N, mps and xpu"),
        ("cuda:", "got cuda:; allowed are cpu"),
        ("cuda:99", "cuda devices here; choose another, or --device cpu"),
    ],
)
def test_devices_that_are_not_here(run, arguments, device, message):
    code, out, err = run(*arguments, "--device", device)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "six.npz", "--protocol", "cm-cifar10"], 2, "got 6 images, protocol 'cm-c"),
        (["doctor", "--calibrate", "six.npz", "six.npz"], 2, "got 6 images, protocol 'torch-fid"),
        (["report", "--real", "cifar10-train"], 2, "no records in results"),
        (["evaluate", "cifar10-train"], 1, "cannot download"),
    ],
)
def test_a_download_fails_with_exit_code_1_after_all_checks(
    run, tmp_path, monkeypatch, arguments, code, message
):
    def no_network(url, path):
        raise OSError("no network")

    monkeypatch.setattr("cmrepro.files._fetch", no_network)
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    np.savez("six.npz", np.zeros((6, 8, 8, 3), np.uint8))
    found, out, err = run(*arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert message in err


PIXELS = np.zeros((4, 8, 8, 3), np.uint8)
BAD_SETS = {
    "float": PIXELS / 1.0,
    "integers": PIXELS.astype(np.int64),
    "channels first": PIXELS.transpose(0, 3, 1, 2).copy(),
    "both": PIXELS.transpose(0, 3, 1, 2) / 1.0,
    "grey": PIXELS[..., 0],
    "alpha": np.zeros((4, 8, 8, 4), np.uint8),
    "order": np.asfortranarray(PIXELS),
    "none": PIXELS[:0],
    "objects": np.array([None, 1], dtype=object),
    "few": PIXELS,
}


def bad_sample_set(folder, kind):
    arrays = {"images": PIXELS, "y": PIXELS} if kind == "keys" else {"arr_0": BAD_SETS[kind]}
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("float", "allowed is uint8 (N, H, W, 3): round images in [-1, 1] by"),
        ("integers", "allowed is uint8 (N, H, W, 3): convert levels of 0-255 by x.astype"),
        ("channels first", "allowed is uint8 (N, H, W, 3): transpose to (N, H, W, 3) by"),
        ("both", ".astype(numpy.uint8), and transpose to (N, H, W, 3) by"),
        ("grey", "allowed is uint8 (N, H, W, 3): three channels are needed"),
        ("alpha", "allowed is uint8 (N, H, W, 3): three channels are needed"),
        ("order", "allowed is uint8 (N, H, W, 3): write it in row-major order by"),
        ("none", "allowed is uint8 (N, H, W, 3): it has no images"),
        ("keys", "is not a sample set (it holds images, y, but no arr_0)"),
        ("few", "got 4 images"),
        ("objects", "arr_0 object (2,); allowed is uint8"),
    ],
)
def test_bad_sample_sets(run, tmp_path, kind, message):
    path = bad_sample_set(tmp_path, kind)
    code, _, err = run("evaluate", path, "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert files_below(tmp_path) == ["set.npz"]


def test_a_truncated_sample_set(run, tmp_path):
    path = bad_sample_set(tmp_path, "few")
    path.write_bytes(path.read_bytes()[:-200])
    code, _, err = run("evaluate", path, "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a sample set" in err


def truncated(source, path):
    path.write_bytes(source.read_bytes()[:100_000])


def foreign(source, path):
    save_file({"weight": torch.zeros(3)}, path)


def other_network(source, path):
    content = source.read_bytes()
    assert content.count(b'\\"network\\": \\"demo\\", \\"origin') == 1
    path.write_bytes(
        content.replace(
            b'\\"network\\": \\"demo\\", \\"origin', b'\\"network\\": \\"damo\\", \\"origin'
        )
    )


def text(source, path):
    path.write_text("weights")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "is not a whole safetensors file"),
        (foreign, "only checkpoints written by cmrepro"),
        (other_network, "unknown network 'damo': did you mean 'demo'"),
        (text, "is not a whole safetensors file"),
    ],
)
def test_bad_checkpoints(run, tmp_path, damage, message):
    path = tmp_path / "bad.safetensors"
    damage(bundled_checkpoints()[CD], path)
    code, _, err = run("sample", path, "--out", tmp_path / "x.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert files_below(tmp_path) == ["bad.safetensors"]


def test_reference_statistics_of_another_extractor(run, tmp_path):
    import dataclasses

    protocol = load_protocol("embedded")
    reference = ReferenceStatistics.load(bundled_references()[protocol.reference])
    metadata = dataclasses.replace(reference.metadata, extractor="inception-v3")
    other = dataclasses.replace(reference, metadata=metadata)
    write_statistics(tmp_path / "other.npz", other)
    np.savez(tmp_path / "set.npz", arr_0=np.zeros((12, 8, 8, 3), np.uint8))
    code, _, err = run(
        "evaluate",
        tmp_path / "set.npz",
        "--reference",
        tmp_path / "other.npz",
        "--num-images",
        12,
        "--out",
        tmp_path,
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "'inception-v3'" in err
    assert "'efficientnet-lite0'" in err
    assert files_below(tmp_path) == ["other.npz", "set.npz"]


REFERENCE = ["references", "build", "synthetic", "--dataset", "x", "--split", "x"]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["reproduce", "cifar10"], ""),
        (["train", "demo-cifar10-edm", "--data", "synthetic"], ""),
        (["sample", CD, "--num", 4], "x.npz"),
        (["search-times", CD], "x.safetensors"),
        (["evaluate", "synthetic"], ""),
        (["anchors", "synthetic"], ""),
        (REFERENCE, "x.npz"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    run, tmp_path, arguments, file
):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"  # tests may run as root, whom no permission stops
    code, _, err = run(*arguments, "--out", below / file)
    assert (code, err.count("\n")) == (2, 1)  # no progress bar has begun
    assert err.startswith(f"cmrepro: cannot write {below / file}")
    assert files_below(tmp_path) == ["file"]


def test_sample_then_evaluate(run, tmp_path):
    path = tmp_path / "two.npz"
    code, _, err = run("sample", CD, "--steps", 2, "--num", 12, "--seed", 3, "--out", path)
    assert code == 0, err
    with np.load(path) as arrays:
        assert arrays["arr_0"].shape == (12, 32, 32, 3)
    code, out, err = run(
        "evaluate", path, "--num-images", 12, "--out", tmp_path, "--format", "json"
    )
    assert code == 0, err
    [row] = json.loads(out)
    record = json.loads((tmp_path / "results" / "records" / f"{row['record']}.json").read_text())
    assert record["model"] == CD
    assert record["nfe"] == 2
    assert record["seed"] == 3
    assert record["scores"]["fid"] == row["fid"]
    assert "the covariance is singular" in err


@pytest.mark.parametrize("variant", ["paper", "both"])
def test_table3_in_every_format(run, variant):
    code, out, _ = run("table3", "--variant", variant, "--format", "csv")
    assert code == 0
    rows = list(csv.reader(io.StringIO(out)))
    assert (len(rows), len(rows[0])) == (14, 7)
    for format_ in ("json", "md", "latex", "table"):
        code, text_, _ = run("table3", "--variant", variant, "--format", format_)
        assert code == 0
        assert "Learning rate" in text_


def test_claims_deviations_checkpoints_references(run):
    for command, least in (
        (["claims"], 50),
        (["deviations"], 30),
        (["checkpoints", "list"], 3),
        (["references", "list"], 1),
    ):
        code, out, err = run(*command, "--format", "json")
        assert code == 0, err
        assert len(json.loads(out)) >= least
    code, out, _ = run("checkpoints", "inspect", CD, "--format", "json")
    assert json.loads(out)["network"] == "demo"


def test_convert_keeps_the_model_and_adds_the_time(run, tmp_path):
    path = tmp_path / "again.safetensors"
    code, _, err = run(
        "checkpoints",
        "convert",
        CD,
        "--two-step-time",
        1.5,
        "--out",
        path,
    )
    assert code == 0, err
    info = json.loads(run("checkpoints", "inspect", path, "--format", "json")[1])
    assert (info["two_step_time"], info["two_step_selection"]) == (1.5, None)
    code, _, err = run("checkpoints", "convert", CD, "--two-step-time", 90, "--out", path)
    assert code == 2
    assert "allowed is between" in err


def test_an_unexpected_error_is_exit_code_1_and_a_traceback_with_debug(run, monkeypatch):
    def broken():
        raise RuntimeError("boom")

    monkeypatch.setattr("cmrepro.report.tables.claims_rows", broken)
    assert run("claims") == (1, "", "cmrepro: RuntimeError: boom\n")
    with pytest.raises(RuntimeError):
        run("--debug", "claims")


@pytest.mark.parametrize("arguments", [[], ["records"]])
def test_without_a_command_there_is_its_help(run, arguments):
    _, wanted, _ = run(*arguments, "--help")
    assert run(*arguments) == (2, "", wanted)


def test_the_torchrun_command_of_the_help_can_be_pasted(run):
    _, out, _ = run("train", "--help")
    assert "\\b" not in out
    _, _, command = out.partition("\n\n    TORCH")
    lines = command.partition("\n\n")[0].splitlines()
    assert len(lines) == 3
    assert all(line.endswith(" \\") for line in lines[:-1])


def test_help_needs_neither_torch_nor_pandas():
    code = (
        "import sys; from cmrepro.cli.main import main; sys.argv = ['cmrepro', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'numpy'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["table3", "--variant", "both"],
        ["claims"],
        ["deviations"],
        ["recipe", "show", "cifar10-ct", "--variant", "released"],
    ],
)
def test_the_paper_needs_neither_torch_nor_pandas(arguments):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pandas'] = None  # as if not installed\n"
        f"sys.argv = ['cmrepro', *{arguments}]\n"
        "from cmrepro.cli.main import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) > 10


def test_an_interrupt_leaves_no_partial_file(tmp_path):
    command = [sys.executable, "-m", "cmrepro", "sample", CD, "--num", "100000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "x.npz")],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores the signal, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        cwd=pathlib.Path(__file__).resolve().parents[1],
    )
    assert process.stderr is not None
    while b"batch" not in process.stderr.read(60):  # the progress bar: sampling has begun
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1].endswith("interrupted")
    assert files_below(tmp_path) == []


OWN_PROTOCOL = """
[extractors.larger]
network = "efficientnet-lite0"
weights = "efficientnet-lite0"
image_size = 96
resize = "bilinear"
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
feature_dim = 1280
num_logits = 1000
spatial_dim = 0

[protocols.larger]
version = 1
source = "this test"
extractor = "larger"
to_uint8 = "truncate"
num_images = 30
metrics = ["fid"]
reference = "{reference}"
"""


@pytest.fixture
def own_protocol(run, tmp_path):
    """A protocol file with its reference built from other images."""
    path, reference = tmp_path / "larger.toml", tmp_path / "reference.npz"
    path.write_text(OWN_PROTOCOL.format(reference=reference))
    names = ["--dataset", "synthetic", "--split", "all"]
    code, _, _ = run(
        "references", "build", "synthetic", "--protocol", path, *names, "--out", reference
    )
    assert code == 0
    return path


def test_several_protocols_and_their_explanation(run, tmp_path, own_protocol):
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "set.npz", arr_0=images)
    both = ["--protocol", "embedded", "--protocol", own_protocol]
    arguments = [tmp_path / "set.npz", "--num-images", 30, "--out", tmp_path, "--format", "json"]
    code, out, err = run("evaluate", *arguments, *both, "--bootstrap", 20)
    assert code == 0, err
    rows = json.loads(out)
    assert [row["record"] for row in rows] == ["set_embedded-v1_n30", "set_larger-v1_n30"]
    assert "warning: embedded: 30 images where protocol embedded has 2,000" in err
    record = json.loads((tmp_path / "results" / "records" / "set_larger-v1_n30.json").read_text())
    assert record["scores"] == {"fid": pytest.approx(rows[1]["fid"])}
    assert record["protocol"]["extractor"]["image_size"] == 96
    assert record["uncertainty"]["resamples"] == 20

    other = tmp_path / "small.toml"
    text = own_protocol.read_text().replace('"truncate"', '"round"').replace("larger]", "small]")
    other.write_text(text.replace('extractor = "larger"', 'extractor = "small"'))
    explained = ["--explain", own_protocol, other]
    code, _, err = run("evaluate", tmp_path / "set.npz", *explained, "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "protocols larger and small have different extractors" in err
    other.write_text(text.replace("extractors.small", "extractors.larger").replace("= 30", "= 40"))
    names = ["--dataset", "synthetic", "--split", "all", "--out", tmp_path / "other.npz"]
    assert run("references", "build", "synthetic", "--protocol", other, *names)[0] == 0
    other.write_text(other.read_text().replace("reference.npz", "other.npz"))
    arguments = [tmp_path / "set.npz", "--format", "json", "--out", tmp_path]
    code, out, err = run("evaluate", *arguments, *explained)
    assert code == 0, err
    changes = [row["change"] for row in json.loads(out)]
    assert changes == ["as it is", "rounding (emulated)", "reference", "number of images"]
    assert (tmp_path / "results" / "figures" / "explain_set_larger_small.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "a", "b", "--reference", "c"], "leave --reference, --num-images and"),
        (["--explain", "a", "b", "--num-images", 5], "leave --reference, --num-images and"),
        (["--explain", "a", "b", "--bootstrap", 5], "leave --reference, --num-images and"),
        (["--real", "c"], "--real is for --explain"),
    ],
)
def test_no_option_of_evaluate_is_passed_over(run, options, message):
    code, _, err = run("evaluate", "set.npz", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_references_are_listed(run):
    code, out, _ = run("references", "list", "--format", "json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} >= {"cifar10-jpeg-train", "adm-imagenet64"}
    code, _, err = run("references", "fetch", "adm-imagenet46")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'adm-imagenet64'" in err
