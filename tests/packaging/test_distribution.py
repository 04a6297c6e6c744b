"""What `pip install` gets: wheel and sdist, built from this tree without network."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import craft_easy_jobs
from tests.support.daemon import PROJECT

VERSION = craft_easy_jobs.__version__
STEM = f"craft_easy_jobs-{VERSION}"


class Built(NamedTuple):
    wheel: Path
    wheel_of_sdist: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", str(PROJECT), "--outdir"]
    subprocess.run([*build, str(folder / "tree"), "--wheel"], check=True, capture_output=True)
    # Without a choice, the wheel is built from the sdist.
    subprocess.run([*build, str(folder / "sdist")], check=True, capture_output=True)
    wheel = f"{STEM}-py3-none-any.whl"
    return Built(folder / "tree" / wheel, folder / "sdist" / wheel, folder / "sdist" / f"{STEM}.tar.gz")


def test_the_wheel_holds_both_packages_and_nothing_else(built: Built) -> None:
    names = set(zipfile.ZipFile(built.wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"craft_easy_jobs", "craft_easy_jobd", f"{STEM}.dist-info"}
    assert {"craft_easy_jobs/py.typed", "craft_easy_jobd/py.typed"} <= names
    assert not {name for name in names if "__pycache__" in name}
    sources = {
        path.relative_to(root).as_posix()
        for root, package in ((PROJECT, "craft_easy_jobs"), (PROJECT / "daemon", "craft_easy_jobd"))
        for path in (root / package).rglob("*.py")
    }
    assert sources == {name for name in names if name.endswith(".py")}


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    tree, sdist = (
        {item.filename: item.CRC for item in zipfile.ZipFile(wheel).infolist()}
        for wheel in (built.wheel, built.wheel_of_sdist)
    )
    assert tree == sdist


def test_the_sdist_can_be_worked_on(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    wanted = ["Makefile", "LICENSE", "README.md", "CHANGELOG.md", ".requirements/run.lock", "tests/conftest.py"]
    assert set(wanted) <= names
    assert not {name for name in names if name.startswith((".venv", "var/", ".git/"))}


def test_installed_into_an_empty_environment_both_commands_run(built: Built, tmp_path: Path) -> None:
    environment = tmp_path / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(built.wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    # Dependencies are borrowed: a .pth line adds their folder, but not the .pth files in it, so not this tree.
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(own, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    for command in ("craft-easy-job", "craft-easy-jobd"):
        said = subprocess.run(
            [environment / "bin" / command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, "")
        assert VERSION in said.stdout
    where = "import craft_easy_jobs, craft_easy_jobd; print(craft_easy_jobs.__file__, craft_easy_jobd.__file__)"
    modules = subprocess.run([python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert modules.stdout.count(own) == 2
