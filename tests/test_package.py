"""Cost of importing the package, and what no committed file may hold."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Written so that this file does not match itself.
FORBIDDEN = re.compile(
    rb"pypi\.[o]rg|python[h]osted\.org|://[^\s\"']+/simple\b|download\.pytorch\.org/[w]hl"
    rb"|index[-_]url\s*=|find[-_]links\s*=|\b(TO[D]O|FIX[M]E|XX[X])\b"
)


@pytest.fixture(scope="module")
def files():
    """Files of the repository that git tracks or would add, relative to its root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # A container often runs as another user than the owner of the checkout.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    output = subprocess.check_output([*command, "--exclude-standard"], cwd=ROOT, text=True)
    names = [name for name in output.split("\0") if name and (ROOT / name).is_file()]
    return [PurePosixPath(name) for name in names]


def test_importing_the_package_loads_nothing_heavy():
    program = "import cmrepro, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "PIL", "click", "msgspec"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize(("users", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "x"}, "x")])
def test_openmp_threads_wait_asleep_unless_the_user_says_otherwise(users, policy):
    program = "import cmrepro, os; print(os.environ['OMP_WAIT_POLICY'])"
    others = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", program]
    found = subprocess.check_output(command, cwd=ROOT, text=True, env=others | users)
    assert found.strip() == policy


def test_no_file_holds_what_must_not_be_published(files):
    contents = {path: (ROOT / path).read_bytes() for path in files}
    text = {path: content for path, content in contents.items() if b"\0" not in content}
    found = {str(path): match for path in text if (match := FORBIDDEN.search(text[path]))}
    assert not found
