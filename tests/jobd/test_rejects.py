"""The name that a refused file gets in rejected/."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from craft_easy_jobd.rejects import reject
from craft_easy_jobs.errors import RequestError

WRONG = RequestError("job", "there is no such job")


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[int, int]]:
    fds = []
    for name in ("incoming", "rejected"):
        (tmp_path / name).mkdir()
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def refused(tmp_path: Path, folders: tuple[int, int], name: str) -> str:
    (tmp_path / "incoming" / name).write_text(f"content of {name}")
    return reject(name, WRONG, 0, source=folders[0], dropped=name, rejected=folders[1])


def test_a_reason_that_a_crash_left_alone_is_written_anew(tmp_path: Path, folders: tuple[int, int]) -> None:
    orphan = tmp_path / "rejected" / "a.json.reason.json"
    orphan.write_text('{"err')
    assert refused(tmp_path, folders, "a.json") == "a.json"
    assert json.loads(orphan.read_text())["field"] == "job"
    assert sorted(os.listdir(tmp_path / "rejected")) == ["a.json", "a.json.reason.json"]


def test_a_rejected_file_that_looks_like_a_reason_is_kept(tmp_path: Path, folders: tuple[int, int]) -> None:
    assert refused(tmp_path, folders, "a.json.reason.json") == "a.json.reason.json"
    assert refused(tmp_path, folders, "a.json") != "a.json"
    assert (tmp_path / "rejected" / "a.json.reason.json").read_text() == "content of a.json.reason.json"


def test_a_name_that_is_taken_gets_an_addition(tmp_path: Path, folders: tuple[int, int]) -> None:
    assert refused(tmp_path, folders, "a.json") == "a.json"
    assert refused(tmp_path, folders, "a.json").startswith("a.json.")
    assert len(os.listdir(tmp_path / "rejected")) == 4


def test_a_reason_left_alone_beside_the_longest_name(tmp_path: Path, folders: tuple[int, int]) -> None:
    name = "x" * 243
    (tmp_path / "rejected" / f"{name}.reason.json").write_text("")
    assert refused(tmp_path, folders, name) == name
