"""Sweeps by process tree, leftovers, and the choice of a containment."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from craft_easy_jobd import cgroups
from craft_easy_jobd.accounting import Accounting
from craft_easy_jobd.cgroups import Cgroups, contain
from craft_easy_jobd.containment import (
    ProcessTrees,
    kill_leftovers,
)
from craft_easy_jobd.errors import SettingsError
from craft_easy_jobd.footprint import children, descendants
from craft_easy_jobd.instance import MARK, instance_of
from tests.support.waiting import wait_until

# Starts a child that starts a child in a session of its own, and so on; says so when all are there.
TREE = """
import os, sys, time
read, write = os.pipe()
for depth in range(int(sys.argv[1])):
    if os.fork():
        break
    os.setsid()
else:
    os.write(write, b"x")
os.read(read, 1)
os.write(write, b"x")
if len(sys.argv) > 2 and depth == 0:
    os._exit(0)
print("there", flush=True)
time.sleep(600)
"""


# Another run of the tests on this machine has another one.
MINE = f"mine-{os.getpid()}"

pytestmark = pytest.mark.usefixtures("adopting")


@pytest.fixture
def tree() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process with so many below it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(depth: int, *args: str, mark: str = "") -> subprocess.Popen[bytes]:
        environment = {**os.environ, MARK: mark} if mark else None
        command = [sys.executable, "-c", TREE, str(depth), *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        return process

    yield start
    for process in started:
        process.kill()
        with process:
            pass


def swept(trees: ProcessTrees, pid: int | None, spared: set[int]) -> None:
    wait_until(lambda: trees.sweep("w1", pid, spared) is None)


def test_descendants_are_found_in_other_sessions_too(tree: Callable[..., subprocess.Popen[bytes]]) -> None:
    trees = ProcessTrees("x")
    process = tree(3)
    wait_until(lambda: len(descendants([process.pid])) == 4)
    assert descendants([process.pid])[0] == process.pid
    process.kill()
    process.wait()
    swept(trees, None, set())


def test_a_sweep_kills_what_is_below_a_worker_and_spares_the_others(
    tree: Callable[..., subprocess.Popen[bytes]],
) -> None:
    trees = ProcessTrees("x")
    worker, other = tree(3), tree(2)
    below = descendants([other.pid])
    swept_pid = worker.pid
    found = trees.sweep("w1", swept_pid, {worker.pid, other.pid})
    assert found is not None
    assert len(found) == 3
    worker.kill()
    worker.wait()
    swept(trees, None, {other.pid})
    assert descendants([other.pid]) == below
    other.kill()
    other.wait()
    swept(trees, None, set())


def test_orphans_of_a_dead_worker_are_killed_and_reaped(tree: Callable[..., subprocess.Popen[bytes]]) -> None:
    trees = ProcessTrees("x")
    worker = tree(3, "leave")
    worker.wait()
    adopted = [pid for pid in children(os.getpid()) if pid != worker.pid]
    assert len(adopted) == 1
    swept(trees, None, set())
    assert not [pid for pid in children(os.getpid()) if pid in adopted]


def test_children_from_before_are_not_touched(tree: Callable[..., subprocess.Popen[bytes]]) -> None:
    stranger = tree(0)
    assert ProcessTrees("x").sweep("w1", None, set()) is None
    assert stranger.poll() is None


def test_leftovers_are_known_by_their_mark(tree: Callable[..., subprocess.Popen[bytes]]) -> None:
    trees = ProcessTrees("x")
    left, other = tree(2, mark=MINE), tree(0, mark="another")
    below = descendants([left.pid])
    assert kill_leftovers(ProcessTrees(MINE)) == len(below) == 3
    assert left.wait() == -9
    assert other.poll() is None
    swept(trees, None, {other.pid})


def test_what_belongs_to_this_life_is_no_leftover(tree: Callable[..., subprocess.Popen[bytes]]) -> None:
    left, own = tree(0, mark=MINE), tree(0, mark=MINE)
    assert kill_leftovers(ProcessTrees(MINE), {own.pid}) == 1
    assert left.wait() == -9
    assert own.poll() is None


def test_a_daemon_that_a_job_started_does_not_kill_itself() -> None:
    call = f"kill_leftovers(ProcessTrees('{MINE}')), os.environ['{MARK}']"
    script = f"from craft_easy_jobd.containment import *; print({call})"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, MARK: MINE}, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == f"0 {MINE}\n".encode()


def test_looking_for_leftovers_does_not_take_long() -> None:
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(300)]
    # Of its own processor time: others may keep the processors busy.
    started = time.thread_time()
    assert kill_leftovers(ProcessTrees(MINE)) == 0
    seconds = time.thread_time() - started
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()
    # 0.03 s where 1,000 processes run.
    assert seconds < 1


def test_the_instance_is_that_of_the_state_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert instance_of(first) == instance_of(tmp_path / "b" / ".." / "a") != instance_of(second)


# -- the choice


def test_a_cgroup_that_was_not_handed_over_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "_own", lambda: tmp_path)
    assert contain("auto", "x").kind == "process tree"
    assert contain("off", "x").kind == "process tree"


def test_a_delegated_cgroup_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cgroup.kill", "cgroup.procs"):
        (tmp_path / name).touch()
    try:
        os.setxattr(tmp_path, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"{tmp_path}: no extended attributes: {error.strerror}")
    monkeypatch.setattr(cgroups, "_own", lambda: tmp_path)
    containment = contain("auto", "x")
    assert isinstance(containment, Cgroups)
    assert containment.cgroup("w1") == f"{tmp_path}/craft-easy-jobs-x-w1"


def test_leftovers_in_a_cgroup_are_counted_though_they_die_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = tmp_path / "craft-easy-jobs-x-w1"
    group.mkdir()
    procs, kill = group / "cgroup.procs", group / "cgroup.kill"
    procs.write_text("4711\n4712\n")

    def write(path: Path, text: str) -> None:
        assert (path, text) == (kill, "1")
        procs.write_bytes(b"")

    monkeypatch.setattr(Path, "write_text", write)
    assert Cgroups(tmp_path, "x", Accounting("process tree", "")).sweep_leftovers() == [4711, 4712]


def test_a_folder_that_is_no_cgroup_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no folder of a cgroup2 tree"):
        contain(str(tmp_path), "x")
