"""load_jobs: modules, files, entry points, and what is told of those that fail."""

import importlib.util
import os
import py_compile
import sys
from pathlib import Path

import pytest

from craft_easy_jobs.definition import Registry
from craft_easy_jobs.errors import LoadError
from craft_easy_jobs.loading import code_version, load_jobs
from craft_easy_jobs.sources import imported

pytestmark = pytest.mark.usefixtures("fresh_registry", "project")

JOB = "from craft_easy_jobs import job\n@job(name='x')\nasync def x(ctx): ...\n"


def test_modules_and_files_register_their_jobs(project: Path, fresh_registry: Registry) -> None:
    (project / "authored").mkdir()
    (project / "authored" / "sub.py").write_text(JOB)
    (project / "authored" / "by_path.py").write_text("import beside\n" + JOB.replace("'x'", "beside.NAME"))
    (project / "authored" / "beside.py").write_text("NAME = 'y'\n")
    load_jobs(["authored.sub", "authored/by_path.py"], entry_points=False)
    assert list(fresh_registry) == ["x", "y"]
    load_jobs(["authored/by_path.py", "authored/sub.py"], entry_points=False)
    assert list(fresh_registry) == ["x", "y"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import gone_missing", "ModuleNotFoundError: No module named 'gone_missing' ({file}:1)"),
        ("def f(:", "syntax error: invalid syntax ({file}:1)"),
        ("import sys\nsys.exit(3)", "it called sys.exit(3) while it was imported ({file}:2)"),
        ("import json\ndef f():\n  json.loads('x')\nf()", "JSONDecodeError: Expecting value"),
        ("import json\ndef f():\n  json.loads('x')\nf()", " ({file}:3)"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines ({file}:1)"),
        (JOB.replace("async ", ""), "job 'x' at {file}:2 must be an async function"),
    ],
)
def test_what_fails_is_told_in_one_line_with_its_place(project: Path, source: str, told: str) -> None:
    file = project / "failing_jobs.py"
    file.write_text(source)
    for name in ("failing_jobs", "failing_jobs.py"):
        with pytest.raises(LoadError) as caught:
            load_jobs([name], entry_points=False)
        assert str(caught.value).startswith(f"jobs module {name!r}: ")
        assert told.format(file=file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.module == name
        assert "failing_jobs" not in sys.modules


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("gone_missing", "there is no module 'gone_missing' in {here} or among the installed packages"),
        ("craft_easy_jobs.gone", "there is no module 'craft_easy_jobs.gone' in {here}"),
        ("gone.py", "there is no such file in {here}"),
        ("", "Empty module name"),
    ],
)
def test_what_is_not_there_is_told(project: Path, module: str, told: str) -> None:
    with pytest.raises(LoadError) as caught:
        load_jobs([module], entry_points=False)
    assert told.format(here=project) in str(caught.value)


def test_a_file_cannot_take_the_name_of_an_imported_module(project: Path) -> None:
    (project / "json.py").write_text(JOB)
    with pytest.raises(LoadError, match=r"a module 'json' is already imported from .*; rename the file"):
        load_jobs(["json.py"], entry_points=False)


def test_installed_distributions_can_name_modules(project: Path, fresh_registry: Registry) -> None:
    (project / "shipped.py").write_text(JOB)
    info = project / "shipped-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[craft_easy_jobs]\nmine = shipped\n")
    load_jobs([])
    assert "x" in fresh_registry
    del sys.modules["shipped"]
    fresh_registry.clear()
    (project / "shipped.py").write_text("raise ValueError('no')")
    with pytest.raises(LoadError, match=r"'shipped \(entry point mine\)': ValueError: no \(.*shipped.py:1\)"):
        load_jobs([])


def imported_anew(name: str, registry: Registry) -> str | None:
    """The code version after an import as if by another process."""
    for module in {Path(path).stem for path in imported()} & sys.modules.keys():
        del sys.modules[module]
    registry.clear()
    importlib.invalidate_caches()
    load_jobs([name], entry_points=False)
    return code_version([name])


def test_the_code_version_follows_the_source(project: Path, fresh_registry: Registry) -> None:
    assert code_version() is None
    file = project / "versioned.py"
    file.write_text(JOB)
    load_jobs(["versioned"], entry_points=False)
    first = code_version(["versioned"])
    assert first is not None
    assert len(first) == 12
    assert code_version() == code_version(["versioned", "versioned.py"]) == first
    file.write_text(JOB + "\n")
    assert code_version() == first, "not what was imported"
    assert imported_anew("versioned", fresh_registry) != first


def test_the_code_version_follows_what_the_jobs_import(project: Path, fresh_registry: Registry) -> None:
    helper = project / "rates.py"
    helper.write_text("RATE = 1\n")
    (project / "billing.py").write_text("import rates\n" + JOB)
    first = imported_anew("billing", fresh_registry)
    assert imported_anew("billing", fresh_registry) == first
    helper.write_text("RATE = 2\n")
    assert imported_anew("billing", fresh_registry) != first


@pytest.mark.parametrize("name", ["hasty", "hasty.py"])
def test_a_module_that_changes_twice_in_a_second_is_imported_as_it_is(
    project: Path, fresh_registry: Registry, name: str
) -> None:
    file = project / "hasty.py"
    versions = []
    for number in range(5):
        file.write_text(f"NUMBER = {number}\n{JOB}")
        versions.append(imported_anew(name, fresh_registry))
        assert number == sys.modules["hasty"].NUMBER
        # As another Python leaves it for the next version, which is as large and of the same second.
        py_compile.compile(str(file))
    assert len(set(versions)) == 5


def test_bytecode_that_is_beyond_doubt_is_used(
    project: Path, fresh_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = project / "settled.py"
    file.write_text("WORD = 'source'\n" + JOB)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    imported_anew("settled", fresh_registry)
    cached = Path(importlib.util.cache_from_source(str(file)))
    cached.write_bytes(cached.read_bytes().replace(b"source", b"cached"))
    imported_anew("settled", fresh_registry)
    assert sys.modules["settled"].WORD == "cached"
