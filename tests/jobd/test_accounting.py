"""Figures of workers: from folders that look like cgroups, and from real processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd import cgroups
from craft_easy_jobd.accounting import CgroupAccount, TreeAccount, Used, read_count
from craft_easy_jobd.cgroups import Cgroups, contain
from craft_easy_jobd.containment import ProcessTrees, adopt_orphans
from craft_easy_jobd.footprint import Footprint, descendants, tree_footprint

MB = 1024**2
FILES = {
    "memory.current": 40 * MB,
    "memory.peak": 90 * MB,
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": 0,
    "memory.events": "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\noom_group_kill 0",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000",
}
KILLED_AT_ITS_LIMIT = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1"
KILLED_FOR_OTHERS = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\noom_group_kill 0"

Fill = Callable[..., None]


@pytest.fixture(autouse=True)
def adopting_none() -> Iterator[None]:
    """A containment without cgroups makes this process one that orphans come to."""
    yield
    adopt_orphans(adopt=False)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A folder that looks like a worker's cgroup."""
    folder = tmp_path / "craft-easy-jobs-x-d1"
    folder.mkdir()
    fill(folder, **FILES)
    return folder


def fill(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def limits(group: Path) -> list[str]:
    names = ("memory.max", "memory.swap.max", "memory.oom.group")
    return [(group / name).read_text().strip() for name in names]


# -- cgroups


def test_the_limit_is_in_force_while_the_attempt_is(group: Path) -> None:
    account = CgroupAccount(group)
    account.begin(64 * MB)
    assert limits(group) == [str(64 * MB), "0", "1"]
    account.end()
    assert limits(group) == ["max", "max", "0"]


def test_without_a_limit_nothing_is_set(group: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in group.iterdir() if "peak" not in path.name}
    account = CgroupAccount(group)
    account.begin(None)
    account.end()
    assert {name: (group / name).stat().st_mtime_ns for name in before} == before


def test_cpu_time_and_peak_are_those_of_the_attempt(group: Path) -> None:
    account = CgroupAccount(group)
    account.begin(None)
    fill(group, **{"cpu.stat": "usage_usec 4000000", "memory.peak": 70 * MB})
    assert account.end() == Used(2.5, 70 * MB)
    account.begin(None)
    assert account.end().cpu_seconds == 0


@pytest.mark.parametrize("seen", [0, 60 * MB])
def test_a_kernel_that_cannot_begin_a_peak_anew_tells_only_a_higher_one(
    group: Path, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "write", refuse)
    account = CgroupAccount(group)
    account.begin(None)
    if seen:
        account.saw(Footprint(seen, 0.0))
    # 90 MB may have been an earlier attempt's.
    assert account.end().peak_bytes == seen
    account.begin(None)
    fill(group, **{"memory.peak": 91 * MB})
    assert account.end().peak_bytes == 91 * MB


def test_figures_outlive_the_cgroup(group: Path) -> None:
    account = CgroupAccount(group)
    account.begin(64 * MB)
    fill(group, **{"cpu.stat": "usage_usec 1750000", "memory.peak": 64 * MB, "memory.events": KILLED_AT_ITS_LIMIT})
    account.close()
    for path in group.iterdir():
        path.unlink()
    group.rmdir()
    account.close()
    assert account.oom_kill() == "limit"
    assert account.end() == Used(0.25, 64 * MB)
    assert account.look() == Footprint(0, 0.0)
    assert not group.exists()


@pytest.mark.parametrize(
    ("events", "expected"), [(KILLED_AT_ITS_LIMIT, "limit"), (KILLED_FOR_OTHERS, "machine"), (None, None)]
)
def test_whose_limit_was_met_is_told(group: Path, events: str | None, expected: str | None) -> None:
    account = CgroupAccount(group)
    account.begin(64 * MB)
    if events:
        fill(group, **{"memory.events": events})
    account.close()
    assert account.oom_kill() == expected


def test_kills_of_an_earlier_attempt_do_not_count(group: Path) -> None:
    fill(group, **{"memory.events": KILLED_AT_ITS_LIMIT})
    account = CgroupAccount(group)
    account.begin(64 * MB)
    account.close()
    assert account.oom_kill() is None


def test_what_earlier_attempts_left_behind_is_told_from_what_a_worker_needs(group: Path) -> None:
    account = CgroupAccount(group)
    assert account.left_over() == 0
    account.begin(None)
    fill(group, **{"memory.current": 90 * MB})
    account.end()
    assert account.left_over() == 50 * MB
    account.begin(None)
    assert account.left_over() == 50 * MB
    account.end()


def test_what_is_used_now_is_read(group: Path) -> None:
    assert CgroupAccount(group).look() == Footprint(40 * MB, 1.5)


# -- handing the controller down


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """A folder that looks like a cgroup with a memory controller that was handed to the daemon."""
    folder = tmp_path / "craft-easy-jobd.service"
    folder.mkdir()
    fill(folder, **{"cgroup.controllers": "cpu memory pids", "cgroup.subtree_control": "", "cgroup.procs": ""})
    fill(folder, **{"cgroup.kill": ""})
    return folder


def test_workers_get_the_memory_controller(delegated: Path) -> None:
    containment = contain(str(delegated), "x")
    assert containment.accounting == ("cgroup", f"{delegated} has the memory controller")
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory"
    assert isinstance(containment.account("d1", os.getpid()), CgroupAccount)
    # Only whoever is in the way has to move.
    assert not (delegated / "supervisor").exists()


def test_the_daemon_goes_into_a_leaf_first_with_what_it_has_started(
    delegated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_own", lambda: delegated)
    moved: list[str] = []
    monkeypatch.setattr(cgroups, "_move", lambda pid, folder: moved.append(f"{pid} to {folder.name}"))
    fill(delegated, **{"cgroup.procs": "4711\n4712\n"})
    # What an earlier life left in its workers' cgroups stays there, where it is known as such.
    left = delegated / "craft-easy-jobs-x-w1"
    left.mkdir()
    fill(left, **{"cgroup.procs": "4713\n"})
    assert contain(str(delegated), "x").accounting.kind == "cgroup"
    assert moved == ["4711 to supervisor", "4712 to supervisor"]


def test_a_cgroup_without_the_controller_is_told(delegated: Path) -> None:
    fill(delegated, **{"cgroup.controllers": "cpu pids"})
    containment = contain(str(delegated), "x")
    assert isinstance(containment, Cgroups)
    note = f"{delegated} has no memory controller (Delegate=memory of the unit)"
    assert containment.accounting == ("process tree", note)
    assert isinstance(containment.account("d1", os.getpid()), TreeAccount)


def test_a_controller_that_cannot_be_handed_down_is_told(delegated: Path) -> None:
    (delegated / "cgroup.subtree_control").unlink()
    (delegated / "cgroup.subtree_control").mkdir()
    note = f"{delegated} cannot hand its memory controller down: Is a directory"
    assert contain(str(delegated), "x").accounting == ("process tree", note)


def test_the_leaf_of_a_unit_is_known_as_such(delegated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DelegateSubgroup=supervisor."""
    leaf = delegated / "supervisor"
    leaf.mkdir()
    monkeypatch.setattr(cgroups, "_own", lambda: leaf)
    monkeypatch.setattr(cgroups, "_is_delegated", lambda path: path == delegated)
    containment = contain("auto", "x")
    assert containment.accounting.kind == "cgroup"
    assert containment.cgroup("w1") == str(delegated / "craft-easy-jobs-x-w1")
    assert not (leaf / "cgroup.procs").exists()


# -- process trees

HOLD = """
import os, sys, time
shared = bytearray(int(sys.argv[1]) * 1024**2)
for _ in range(int(sys.argv[2])):
    if not os.fork():
        time.sleep(600)
print("there", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holding() -> Iterator[Callable[[int, int], int]]:
    """Start a process that holds so many MiB, which so many children share with it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(megabytes: int, children: int) -> int:
        command = [sys.executable, "-S", "-c", HOLD, str(megabytes), str(children)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        return process.pid

    yield start
    for process in started:
        os.killpg(process.pid, 9)
        with process:
            pass


def test_shared_memory_is_counted_once_where_it_matters(holding: Callable[[int, int], int]) -> None:
    pid = holding(60, 3)
    assert tree_footprint(pid).memory_bytes > 4 * 60 * MB
    assert tree_footprint(pid, enough=1000 * MB).memory_bytes > 4 * 60 * MB
    assert 60 * MB < tree_footprint(pid, enough=100 * MB).memory_bytes < 120 * MB


def test_a_look_can_be_bounded(holding: Callable[[int, int], int]) -> None:
    pid = holding(60, 3)
    assert len(descendants([pid])) == 4
    assert len(descendants([pid], at_most=2)) == 2
    assert 2 * 60 * MB < tree_footprint(pid, at_most=2).memory_bytes < 3 * 60 * MB


def test_what_earlier_attempts_left_in_a_tree_is_told() -> None:
    account = TreeAccount(os.getpid())
    assert account.left_over() == 0
    account.begin(None)
    left = bytearray(50 * MB)
    assert 40 * MB < account.left_over() < 60 * MB
    account.begin(None)
    assert 40 * MB < account.left_over() < 60 * MB
    del left


def test_a_process_that_is_gone_uses_nothing() -> None:
    process = subprocess.Popen(["true"], stdin=subprocess.DEVNULL)
    process.wait(30)
    assert tree_footprint(process.pid, enough=0) == Footprint(0, 0.0)


def test_a_tree_is_told_from_what_was_seen_of_it() -> None:
    account = TreeAccount(os.getpid())
    account.begin(None)
    assert account.end() == Used()
    before = account.look()
    account.begin(None)
    account.saw(Footprint(50 * MB, before.cpu_seconds + 1.0))
    account.saw(Footprint(30 * MB, before.cpu_seconds + 2.0))
    used = account.end()
    assert used.peak_bytes == 50 * MB
    assert used.cpu_seconds is not None
    # The sum and the difference of floats above are not exact.
    assert 1.5 < round(used.cpu_seconds, 6) <= 2.0


def test_cpu_time_of_children_is_counted_while_they_live_and_after() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"
    before = tree_footprint(os.getpid()).cpu_seconds
    child = subprocess.Popen([sys.executable, "-S", "-c", burn], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree_footprint(os.getpid()).cpu_seconds >= before + 0.29
        child.kill()
    assert tree_footprint(os.getpid()).cpu_seconds >= before + 0.29


def test_kills_by_the_kernel_are_counted_from_the_start_of_the_attempt(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom 1\noom_kill 1\n")
    account = ProcessTrees("x", kills=counter).account("d1", os.getpid())
    account.begin(None)
    assert account.oom_kill() is None
    counter.write_text("oom 1\noom_kill 2\n")
    assert account.oom_kill() == "machine"
    account.begin(None)
    assert account.oom_kill() is None


def test_the_kernel_counts_its_kills() -> None:
    assert read_count(Path("/proc/vmstat"), "pgfault") > 0
    assert "oom_kill " in Path("/proc/vmstat").read_text()
    assert read_count(Path("/proc/no such file"), "oom_kill") == 0


def test_there_is_a_way_to_count_without_cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "_own", lambda: tmp_path)
    assert contain("off", "x").accounting == ("process tree", "the setting cgroup is off")
    assert contain("auto", "x").accounting.note.startswith("no cgroup2 was handed over")
    assert contain("off", "x").account("w1", os.getpid()).look().memory_bytes > 0
