"""Guards over the tree itself: what may lie where, how long things get, what must be documented."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import craft_easy_jobs
from tests.support.daemon import PROJECT

TOP_LEVEL = {
    *("craft_easy_jobs", "daemon", "systemd", "tests"),
    *("pyproject.toml", "Makefile", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE"),
}
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 200

# Put together here, so that this file does not hold what it looks for.
BANNED = [
    *("/" + folder + "/" for folder in ("work", "root", "Users")),
    *(name + "." + end for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("files.python", "hosted"))),
]


def tracked() -> list[Path]:
    # The tree may belong to another user than the one who tests it; git refuses that unless told.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git work tree")
    paths = (PROJECT / name.decode() for name in listing.stdout.split(b"\0") if name)
    return [path for path in paths if path.exists()]


def product() -> list[Path]:
    return [path for package in ("craft_easy_jobs", "daemon") for path in sorted((PROJECT / package).rglob("*.py"))]


def nodes(path: Path, *kinds: type[ast.stmt]) -> Iterator[ast.stmt]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def too_long(path: Path, limit: int, *kinds: type[ast.stmt]) -> list[str]:
    lengths = ((node, (node.end_lineno or 0) - node.lineno + 1) for node in nodes(path, *kinds))
    return [f"{path.relative_to(PROJECT)}:{node.lineno}: {size} lines" for node, size in lengths if size > limit]


def test_the_top_level_holds_only_what_belongs_there() -> None:
    top = {path.relative_to(PROJECT).parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_daemon_is_a_folder_not_a_package() -> None:
    """An __init__.py there would shadow another distribution's package `daemon`."""
    assert not (PROJECT / "daemon" / "__init__.py").exists()


def test_no_module_shares_its_name_with_an_export() -> None:
    modules = {path.stem for path in (PROJECT / "craft_easy_jobs").iterdir()}
    assert not modules & set(craft_easy_jobs.__all__)


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(PROJECT)}: {word}"
        for path in tracked()
        for word in BANNED
        if word in path.read_text(errors="replace")
    ]
    assert not found


def test_modules_classes_and_functions_stay_short() -> None:
    found = [f"{path}: module" for path in product() if len(path.read_text().splitlines()) > MAX_MODULE_LINES]
    for path in product():
        found += too_long(path, MAX_FUNCTION_LINES, ast.FunctionDef, ast.AsyncFunctionDef)
        found += too_long(path, MAX_CLASS_LINES, ast.ClassDef)
    assert not found


def test_every_make_target_says_what_it_does() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    documented = set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.MULTILINE))
    assert targets == documented
    assert {"setup", "run", "demo", "test", "check", "clean"} <= targets


def test_every_setting_is_documented() -> None:
    path = PROJECT / "daemon" / "craft_easy_jobd" / "settings.py"
    settings = next(node for node in nodes(path, ast.ClassDef) if getattr(node, "name", "") == "Settings")
    assert isinstance(settings, ast.ClassDef)
    bare = [
        ast.unparse(field.target)
        for field, after in zip(settings.body, settings.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and not isinstance(after, ast.Expr)
    ]
    assert not bare


def test_the_version_is_said_once() -> None:
    places = [path for path in product() if re.search(r"^__version__\s*=", path.read_text(), re.MULTILINE)]
    assert places == [PROJECT / "craft_easy_jobs" / "__init__.py"]


@pytest.mark.parametrize("name", ["run", "dev", "peers"])
def test_locks_hold_hashes_and_nothing_of_an_index(name: str) -> None:
    lines = (PROJECT / ".requirements" / f"{name}.lock").read_text().splitlines()
    assert all(re.match(r"[a-z0-9-]+==\S+( ; .*)? \\$|    --hash=sha256:[0-9a-f]{64}( \\)?$", line) for line in lines)


def test_running_and_developing_use_the_same_versions() -> None:
    pins = {
        name: set(re.findall(r"^(\S+==\S+)", (PROJECT / ".requirements" / f"{name}.lock").read_text(), re.MULTILINE))
        for name in ("run", "dev")
    }
    assert pins["run"] < pins["dev"]
