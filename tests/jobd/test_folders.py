"""Where the daemon's folders are put on the disk; only hints, which may change nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from craft_easy_jobd.folders import make_apart, spread_out


def test_a_folder_is_made_apart_once(tmp_path: Path) -> None:
    results = tmp_path / "var" / "results"
    make_apart(results)
    (results / "a.json").touch()
    make_apart(results)
    assert [path.name for path in results.iterdir()] == ["a.json"]
    assert [path.name for path in results.parent.iterdir()] == ["results"]


def test_what_a_crash_left_of_it_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".results-01020304").mkdir()
    make_apart(tmp_path / "results")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_what_is_in_the_way_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    make_apart(tmp_path / "file" / "results")
    make_apart(tmp_path / "file")
    assert (tmp_path / "file").is_file()


def test_folders_of_one_that_is_spread_out_lie_apart(tmp_path: Path) -> None:
    if subprocess.run(["findmnt", "-no", "FSTYPE", "-T", tmp_path], capture_output=True, text=True).stdout != "ext4\n":
        pytest.skip("only ext4 knows it")
    if shutil.which("lsattr") is None:
        pytest.skip("needs lsattr")
    spread_out(tmp_path)
    shown = subprocess.run(["lsattr", "-d", tmp_path], capture_output=True, text=True, check=True).stdout
    assert "T" in shown.split()[0]


def test_a_folder_that_is_not_there_is_none_to_spread_out(tmp_path: Path) -> None:
    spread_out(tmp_path / "none")
    assert not (tmp_path / "none").exists()
