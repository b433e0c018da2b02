"""Contents of the built package, cost of importing it, and what no committed file may hold."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_ASSETS_BYTES = 40_000_000  # all that a clone and an installation carry for the demo

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without an isolated environment and so without the network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", folder], cwd=ROOT, check=True)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_every_file_of_the_package(wheel, files):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {str(path) for path in files if path.parts[0] == "cmrepro"}
    assets = [ROOT / name for name in packed if not name.endswith(".py")]
    assert sum(path.stat().st_size for path in assets) < MAX_ASSETS_BYTES


def test_importing_the_package_loads_nothing_heavy():
    program = "import cmrepro, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "PIL", "click", "msgspec"}
    assert not heavy & set(loaded)


def test_the_version_is_the_same_everywhere(wheel):
    from cmrepro import __version__

    assert wheel.name.split("-")[1] == __version__
    for name, line in (("CITATION.cff", "version: "), ("CHANGELOG.md", "## ")):
        found = re.search(rf"^{line}(\S+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert found and found[1] == __version__, name


def test_no_file_holds_what_must_not_be_published(files):
    contents = {path: (ROOT / path).read_bytes() for path in files}
    text = {path: content for path, content in contents.items() if b"\0" not in content}
    found = {str(path): match for path in text if (match := FORBIDDEN.search(text[path]))}
    assert not found
