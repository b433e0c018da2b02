"""What the built package holds, what importing it costs, and what no committed file may hold."""

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cmrepro"
MAX_ASSETS_BYTES = 40_000_000  # all that a clone and an installation carry for the demo

# Written so that this file does not match itself.
FORBIDDEN = {
    "an address of a package registry": re.compile(
        rb"pypi\.[o]rg|python[h]osted\.org|://[^\s\"']+/simple\b|download\.pytorch\.org/[w]hl"
        rb"|index[-_]url\s*=|find[-_]links\s*="
    ),
    "an unfinished place": re.compile(rb"\b(TO[D]O|FIX[M]E|XX[X])\b"),
}


@pytest.fixture(scope="module")
def files() -> list[pathlib.PurePosixPath]:
    """Files of the repository that git tracks or would add, relative to its root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # A container often runs as another user than the owner of the checkout.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    output = subprocess.run(
        [*command, "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    names = [name for name in output.split("\0") if name and (ROOT / name).is_file()]
    return [pathlib.PurePosixPath(name) for name in names]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built without an isolated environment and so without the network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
    )
    (path,) = folder.iterdir()
    return path


def loaded_modules(statement: str) -> set[str]:
    """Top-level names in sys.modules after a statement, in a new interpreter."""
    program = (
        f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return set(output.split())


def test_the_wheel_holds_every_file_of_the_package(
    wheel: pathlib.Path, files: list[pathlib.PurePosixPath]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {str(path) for path in files if path.parts[0] == "cmrepro"}
    assert "cmrepro/py.typed" in packed


def test_bundled_assets_stay_small(files: list[pathlib.PurePosixPath]) -> None:
    sizes = {
        str(path): (ROOT / path).stat().st_size
        for path in files
        if path.parts[0] == "cmrepro" and path.suffix != ".py"
    }
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:5]
    assert sum(sizes.values()) < MAX_ASSETS_BYTES, {name: sizes[name] for name in largest}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "PIL", "click"}
    assert loaded_modules("import cmrepro") & heavy == set()


def test_tables_and_report_load_without_torch() -> None:
    """Through their dependencies too, which tests/test_imports.py cannot see."""
    paths = [PACKAGE / "records.py"]
    for part in ("paper", "report"):
        paths += sorted((PACKAGE / part).rglob("*.py"))
    assert len(paths) > 2
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    modules = [name.removesuffix(".__init__") for name in names]
    assert "torch" not in loaded_modules("import " + ", ".join(modules))


def test_the_version_is_the_same_everywhere(wheel: pathlib.Path) -> None:
    from cmrepro import __version__

    def first(pattern: str, name: str) -> str:
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found, f"no version in {name}"
        return found[1]

    assert {
        "wheel": wheel.name.split("-")[1],
        "CITATION.cff": first(r"^version: (\S+)", "CITATION.cff"),
        "CHANGELOG.md": first(r"^## (\S+)", "CHANGELOG.md"),
    } == dict.fromkeys(("wheel", "CITATION.cff", "CHANGELOG.md"), __version__)


def test_no_file_holds_what_must_not_be_published(files: list[pathlib.PurePosixPath]) -> None:
    found = []
    for path in files:
        content = (ROOT / path).read_bytes()
        if b"\0" in content:  # binary
            continue
        for what, pattern in FORBIDDEN.items():
            if match := pattern.search(content):
                line = content.count(b"\n", 0, match.start()) + 1
                found.append(f"{path}:{line}: {what}: {match[0].decode(errors='replace')}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an address of a package registry", "https://py" + "pi.org/project/cmrepro/"),
        ("an address of a package registry", "--extra-index" + "-url = 'http://host/'"),
        ("an address of a package registry", "https://mirror.example/files/" + "simple"),
        ("an address of a package registry", "download.pytorch.org/" + "whl/cpu"),
        ("an unfinished place", "# TO" + "DO: later"),
    ],
)
def test_what_must_not_be_published_is_recognised(what: str, text: str) -> None:
    assert FORBIDDEN[what].search(text.encode())
