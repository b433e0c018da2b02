"""Atomic files, checksums, the cache folder, unknown names; provenance and the state of git."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest
import torch

from cmrepro import __version__
from cmrepro import provenance as module
from cmrepro.files import atomic_path, require_checksum, sha256
from cmrepro.provenance import git_state, provenance
from cmrepro.schema import unknown


def test_a_file_appears_when_the_block_ends(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "scores.json"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # os.replace is atomic inside one folder only
        assert temporary.suffix == ".json"  # numpy appends its own to a name without
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644  # the temporary file is private to its owner


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
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


def test_checksums_are_those_of_the_standards(tmp_path: pathlib.Path) -> None:
    """FIPS 180-2 and RFC 1321, the example "abc"."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(path) == expected
    for checksum in ("md5:900150983cd24fb0d6963f7d28e17f72", f"sha256-prefix:{expected[:8]}"):
        require_checksum(path, checksum, "")
    with pytest.raises(ValueError, match=f"has sha256 {expected}, expected 00; fetch it again"):
        require_checksum(path, "sha256:00", "; fetch it again")


def test_an_unknown_name_lists_the_nearest_and_all() -> None:
    text = unknown("solver", "hein", ["heun", "euler"])
    assert text == "unknown solver 'hein': did you mean 'heun'? known: euler, heun"
    text = unknown("solver", "xyz", ["heun", "euler"])
    assert text == "unknown solver 'xyz': known: euler, heun"


def test_provenance_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/cmrepro", "sample", "my model", "--seed", "1"])
    provenance.cache_clear()
    entry = provenance()
    provenance.cache_clear()
    assert entry.command == "cmrepro sample 'my model' --seed 1"  # can be pasted into a shell
    assert entry.cmrepro == __version__
    assert entry.packages["torch"] == importlib.metadata.version("torch")
    assert torch.backends.cpu.get_cpu_capability() in entry.cpu


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A git checkout with one commit that holds the module."""
    file = tmp_path / "cmrepro" / "provenance.py"
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


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        ("results.txt", False),  # else only the first record of a run would be clean
        ("cmrepro/provenance.py", True),
        ("cmrepro/new.py", True),
    ],
)
def test_changed_and_new_code_make_a_checkout_dirty(
    checkout: pathlib.Path, changed: str, dirty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(pathlib.Path(__file__).parents[1] / ".git"))  # as in hooks
    head = next((checkout / ".git" / "refs" / "heads").glob("*")).read_text().strip()
    assert git_state() == (head, False)
    (checkout / changed).write_text("changed")
    assert git_state() == (head, dirty)


def test_without_a_checkout_or_git_there_is_no_commit(
    checkout: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(checkout))
        assert git_state() == (None, None)
    installed = tmp_path / "site-packages" / "cmrepro" / "provenance.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    assert git_state() == (None, None)
