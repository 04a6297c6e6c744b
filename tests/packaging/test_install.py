"""`.requirements/install` on machines that lack something; what it does on a good one, `make test` itself shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import PROJECT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the script reads, in a path with a space."""
    tree = tmp_path / "a tree"
    shutil.copytree(PROJECT / ".requirements", tree / ".requirements")
    shutil.copy(PROJECT / "pyproject.toml", tree)
    (tree / "craft_easy_jobs").mkdir()
    shutil.copy(PROJECT / "craft_easy_jobs" / "__init__.py", tree / "craft_easy_jobs")
    return tree


def interpreter(tree: Path, script: str) -> Path:
    """A python that does what the shell script says, and otherwise what the real one does."""
    path = tree.parent / "python"
    path.write_text(f'#!/bin/sh\n{script}\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def install(tree: Path, python: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / ".requirements" / "install", "run"],
        cwd="/",
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_python_at_all(tree: Path) -> None:
    ended = install(tree, "python3-that-is-not-there")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "python3-that-is-not-there is not installed. On Debian or Ubuntu: apt-get install python3 python3-venv"
    ]


def test_a_python_that_is_too_old(tree: Path) -> None:
    old = 'case "$*" in *version_info*) exit 1;; -V) echo Python 3.9.2; exit;; esac'
    ended = install(tree, interpreter(tree, old))
    assert ended.returncode == 1
    assert "Python 3.11 or later is needed" in ended.stderr
    assert "is Python 3.9.2" in ended.stderr


def test_without_ensurepip_the_package_is_named_and_nothing_is_left(tree: Path) -> None:
    ended = install(tree, interpreter(tree, 'case "$*" in *ensurepip*) exit 1;; esac'))
    assert ended.returncode == 1
    assert "apt-get install python3-venv" in ended.stderr
    assert not (tree / ".venv").exists()


def test_an_environment_of_another_folder_is_made_again(tree: Path) -> None:
    stale = tree / ".venv" / "bin" / "of-the-old-place"
    stale.mkdir(parents=True)
    (tree / ".venv" / ".made-in").write_text("/where/it/was/before\n")
    made = install(tree, interpreter(tree, 'case "$*" in "-m venv"*) mkdir -p .venv; exit 7;; esac'))
    assert "Making .venv" in made.stderr
    assert not stale.exists()
    assert "-m venv failed" in made.stderr
    assert not (tree / ".venv").exists(), "a broken environment is left"


def test_an_environment_that_cannot_be_replaced_is_named_with_why(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".venv").mkdir()
    tools = tree.parent / "tools"
    tools.mkdir()
    (tools / "rm").write_text("#!/bin/sh\nprintf 'rm: no %s\\n' 1 2 >&2\nexit 1\n")
    (tools / "rm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    refused = install(tree, interpreter(tree, ""))
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"{tree.resolve()}/.venv cannot be replaced: rm: no 1",
        "Remove it as the user who made it, or work in a clone of your own.",
    ]


def test_modules_are_compiled_where_python_writes_no_bytecode(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "daemon").mkdir()
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / ".made-in").write_text(f"{tree.resolve()}\n")
    python = interpreter(tree, 'case "$*" in *"-m pip"*) exit;; esac').rename(tree / ".venv" / "bin" / "python")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    ended = install(tree, python)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list((tree / "craft_easy_jobs" / "__pycache__").glob("__init__.*.pyc"))
