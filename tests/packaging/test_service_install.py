"""`make install` and `make uninstall` below a DESTDIR."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import PROJECT
from tests.support.installation import PYTHON, installed, no_test_is_timed, run_script

pytestmark = pytest.mark.skipif(not os.access(PYTHON, os.X_OK), reason=f"{PYTHON} is not installed")

FILES = {
    "etc/craft-easy-jobd/settings.toml",
    "usr/local/lib/systemd/system/craft-easy-jobd.service",
    "usr/local/lib/systemd/system/craft-easy-jobd.socket",
    "usr/local/lib/sysusers.d/craft-easy-jobd.conf",
    "usr/local/lib/tmpfiles.d/craft-easy-jobd.conf",
    "usr/local/share/craft-easy-jobs/README.md",
    "usr/local/share/craft-easy-jobs/settings.toml",
    *(
        f"usr/local/share/craft-easy-jobs/{folder}/{path.name}"
        for folder in ("drop-ins", "examples")
        for path in (PROJECT / "systemd" / folder).iterdir()
    ),
}
COMMANDS = ("craft-easy-job", "craft-easy-jobd")
VENV = "opt/craft-easy-jobs"


def files(root: Path) -> dict[str, Path]:
    """All but folders, by path below root, without what is in the environment."""
    return {
        str(path.relative_to(root)): path
        for folder, subfolders, names in os.walk(root)
        for path in (Path(folder, name) for name in names)
        if not str(path.relative_to(root)).startswith(VENV)
    }


def test_all_is_in_place_and_readable_for_all(installation: Path) -> None:
    found = files(installation)
    assert set(found) == FILES | {f"usr/local/bin/{name}" for name in COMMANDS}
    assert {stat.S_IMODE(found[name].stat().st_mode) for name in FILES} == {0o644}
    for name in COMMANDS:
        assert os.readlink(found[f"usr/local/bin/{name}"]) == f"/{VENV}/bin/{name}"
    closed = [path for path in installation.rglob("*") if path.is_dir() and stat.S_IMODE(path.stat().st_mode) != 0o755]
    assert not closed


def test_nothing_names_the_place_where_it_was_made(installation: Path) -> None:
    needles = [os.fsencode(place) for place in (installation, PROJECT)]
    made = (path for path in installation.rglob("*") if path.is_file() and not path.is_symlink())
    assert not [path for path in made if any(needle in path.read_bytes() for needle in needles)]
    for name in COMMANDS:
        script = (installation / VENV / "bin" / name).read_text()
        assert script.startswith(f"#!/{VENV}/bin/python\n")


def test_the_environment_runs_without_this_tree(installation: Path, tmp_path: Path) -> None:
    environment = installation / VENV
    code = "import sys, craft_easy_jobd, craft_easy_jobs; print(sys.prefix, craft_easy_jobs.__file__)"
    run = [str(environment / "bin" / "python"), "-c", code]
    said = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True, env={})
    prefix, file = said.stdout.split()
    assert prefix == str(environment)
    assert file.startswith(f"{environment}/lib/")
    # Compiled, since the service may not write there; and nothing may install into it by accident.
    assert list((Path(file).parent / "__pycache__").glob("runner.*.pyc"))
    assert not list(environment.glob("bin/pip*"))


def test_again_replaces_programs_and_keeps_settings_and_removing_keeps_data(installation: Path, tmp_path: Path) -> None:
    root = tmp_path / "a system"
    shutil.copytree(installation, root, symlinks=True)
    settings, left = root / "etc/craft-easy-jobd/settings.toml", root / VENV / "left-from-before"
    result = root / "var/lib/craft-easy-jobd/results/run.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    settings.write_text("slots = 7\n")
    left.touch()

    with no_test_is_timed():
        installed(root)
    assert settings.read_text() == "slots = 7\n"
    assert not left.exists()
    assert [path.name for path in (root / "opt").iterdir()] == ["craft-easy-jobs"]
    assert (root / VENV / "bin" / "craft-easy-jobd").exists()

    said = run_script("install", "uninstall", DESTDIR=str(root), PREFIX="/usr/local")
    assert set(files(root)) == {
        "etc/craft-easy-jobd/settings.toml",
        "var/lib/craft-easy-jobd/results/run.json",
    }
    assert not (root / VENV).exists()
    assert said.splitlines() == [f"kept: {root}/etc/craft-easy-jobd", f"kept: {root}/var/lib/craft-easy-jobd"]


def test_what_is_wrong_is_said_before_anything_is_done(tmp_path: Path) -> None:
    def refused(**environment: str) -> str:
        with pytest.raises(AssertionError) as caught:
            run_script("install", "install", **{"DESTDIR": str(tmp_path), **environment})
        return str(caught.value)

    assert "PYTHON=" in refused(PYTHON="python3-that-is-not-there")
    assert "must be absolute paths" in refused(DESTDIR="relative")
    assert not list(tmp_path.iterdir())


def test_make_passes_on_what_it_is_told() -> None:
    told = subprocess.run(
        ["make", "--dry-run", "install", "DESTDIR=/a", "PREFIX=/usr"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "DESTDIR='/a' PREFIX='/usr' systemd/install install" in told.stdout
