"""Atomic files, checksums, the cache folder, unknown names, provenance."""

import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest
import torch

from cmrepro import __version__
from cmrepro import provenance as module
from cmrepro.files import atomic_path, cache_folder, sha256
from cmrepro.provenance import git_state, provenance
from cmrepro.schema import unknown


def test_the_file_appears_under_its_name_only_when_the_block_ends(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "scores.json"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # os.replace is atomic inside one folder only
        assert temporary.suffix == ".json"  # numpy appends its own to a name without
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_the_file(tmp_path: pathlib.Path) -> None:
    """The temporary file alone is private to its owner."""
    with atomic_path(tmp_path / "a") as temporary:
        pass
    assert not temporary.exists()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failing_block_leaves_nothing_new(
    tmp_path: pathlib.Path, error: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_name_that_is_a_folder_leaves_no_temporary_file(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(OSError), atomic_path(folder) as temporary:
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("below", ["a.txt", "deeper/a.txt"])
def test_a_folder_that_cannot_be_written_is_a_one_line_error(
    tmp_path: pathlib.Path, below: str
) -> None:
    """A regular file in the place of the folder: permissions do not bind the superuser."""
    (tmp_path / "file").write_text("kept")
    caught = pytest.raises(ValueError, match=r"cannot write .*file.*--out")
    with caught as error, atomic_path(tmp_path / "file" / below):
        pytest.fail("the block ran")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_sha256_is_that_of_the_standard(tmp_path: pathlib.Path) -> None:
    """FIPS 180-2, the example "abc"."""
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") == expected == hashlib.sha256(b"abc").hexdigest()


def test_the_cache_folder_can_be_chosen(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMREPRO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("CMREPRO_CACHE", "")
    assert cache_folder().name == "cmrepro"
    assert cache_folder().is_absolute()


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    text = unknown("solver", "hein", ["heun", "euler"])
    assert text == "unknown solver 'hein': did you mean 'heun'? known: euler, heun"


def test_a_name_near_to_none_gets_no_suggestion() -> None:
    assert (
        unknown("solver", "xyz", ["heun", "euler"]) == "unknown solver 'xyz': known: euler, heun"
    )


def test_provenance_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/cmrepro", "sample", "my model", "--seed", "1"])
    provenance.cache_clear()
    entry = provenance()
    provenance.cache_clear()
    assert entry["command"] == "cmrepro sample 'my model' --seed 1"  # can be pasted into a shell
    assert entry["cmrepro"] == __version__
    assert entry["python"] == sys.version.split()[0]
    assert entry["packages"]["torch"] == importlib.metadata.version("torch")
    assert torch.backends.cpu.get_cpu_capability() in entry["cpu"]
    assert json.loads(json.dumps(entry)) == entry  # goes into records and headers


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A git checkout with one commit that holds the module."""
    file = tmp_path / "cmrepro" / "experiments" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("code")
    (tmp_path / "pyproject.toml").write_text("settings")
    (tmp_path / "results.txt").write_text("old")
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=m"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(module, "__file__", str(file))
    return tmp_path


def test_commit_of_a_clean_checkout(checkout: pathlib.Path) -> None:
    head = (checkout / ".git" / "refs" / "heads").glob("*")
    assert git_state() == (next(head).read_text().strip(), False)


@pytest.mark.parametrize("changed", ["cmrepro/experiments/provenance.py", "cmrepro/new.py"])
def test_changed_and_new_code_make_the_checkout_dirty(
    checkout: pathlib.Path, changed: str
) -> None:
    (checkout / changed).write_text("changed")
    assert git_state()[1] is True


def test_new_results_do_not_make_the_checkout_dirty(checkout: pathlib.Path) -> None:
    """Otherwise only the first record of a run would be clean."""
    (checkout / "results.txt").write_text("new")
    assert git_state()[1] is False


def test_an_installed_package_has_no_commit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site-packages" / "cmrepro" / "experiments" / "provenance.py"
    monkeypatch.setattr(module, "__file__", str(file))
    assert git_state() == (None, None)


def test_a_machine_without_git_has_no_commit(
    checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert git_state() == (None, None)
