"""Whatever a job does: grace + 1 s after its deadline or a forced cancel there is a result, and nothing else of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cgroups import own_cgroup
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until
from tests.system.hard_kill_jobs import GRACE, TIMEOUT, WAYS

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.hard_kill_jobs")
PROMISED = GRACE + 1.0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def noted(path: Path, *, within: float = 30.0) -> int:
    """The pid that a job wrote down."""
    return int(wait_until(lambda: path.exists() and path.read_text(), within=within))


def worker_cgroups(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A folder of a cgroup2 tree that is the test's own."""
    with own_cgroup() as folder:
        yield folder


@pytest.fixture(params=["process tree", "cgroup"])
def contained(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The arguments for each containment."""
    if request.param == "process tree":
        return ("--cgroup", "off")
    return ("--cgroup", str(request.getfixturevalue("cgroup")))


# -- the matrix


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("contained", "job", "ending"),
    [
        ("process tree", "hang", "timeout"),
        ("process tree", "hang-alone", "force"),
        ("cgroup", "hang", "force"),
        ("cgroup", "hang-alone", "timeout"),
    ],
    indirect=["contained"],
)
def test_nothing_outlives_its_end(
    daemon: Start, tmp_path: Path, contained: tuple[str, ...], job: str, ending: str
) -> None:
    jobd = daemon(*JOBS, *contained, "--workers", "3", "--slots", "1", "--dedicated-workers", "4")
    beside = jobd.drop({"job": "neighbour", "params": {"pids": str(tmp_path / "neighbour")}})
    neighbour = noted(tmp_path / "neighbour")
    runs = {
        way: jobd.drop({"job": f"{job}-{ending}", "params": {"way": way, "pids": str(tmp_path / way)}}) for way in WAYS
    }
    for way, run_id in runs.items():
        pid = noted(tmp_path / way, within=60)
        if ending == "force":
            asked = time.monotonic()
            assert jobd.call("POST", f"/v1/runs/{run_id}/cancel", {"force": True})[0] < 300
        result = jobd.result(run_id)
        assert not alive(pid), way
        if ending == "force":
            assert time.monotonic() - asked < PROMISED, way
            assert (result["status"], result["reason"]) == ("failed", "cancelled")
        else:
            assert result["duration_seconds"] < TIMEOUT + PROMISED, way
            assert (result["status"], result["reason"]) == ("failed", "timed_out")
    assert alive(neighbour)
    jobd.call("POST", f"/v1/runs/{beside}/cancel")
    assert jobd.result(beside)["result"] == "undisturbed"
    assert jobd.stop() == 0


# -- what obeys and leaves something


@pytest.mark.parametrize("way", ["a_child", "a_daemon"])
def test_what_an_obedient_run_left_is_killed_and_its_neighbours_go_on(
    daemon: Start, tmp_path: Path, contained: tuple[str, ...], way: str
) -> None:
    jobd = daemon(*JOBS, *contained, "--workers", "1")
    beside = jobd.drop({"job": "shared-neighbour"})
    wait_until(lambda: jobd.call("GET", f"/v1/runs/{beside}")[1].get("log_count"))
    run_id = jobd.drop({"job": "obey-and-leave", "params": {"what": way, "pids": str(tmp_path / "pid")}})
    pid = noted(tmp_path / "pid")
    result = jobd.result(run_id)
    assert (result["status"], result["reason"]) == ("failed", "timed_out")
    assert result["duration_seconds"] < TIMEOUT + PROMISED
    assert not alive(pid)
    jobd.call("POST", f"/v1/runs/{beside}/cancel")
    result = jobd.result(beside)
    assert (result["result"], result["attempts"]) == ("undisturbed", 1)


def test_a_daemon_that_may_be_a_neighbours_costs_the_worker(daemon: Start, tmp_path: Path) -> None:
    jobd = daemon(*JOBS, "--cgroup", "off", "--workers", "1")
    beside = jobd.drop({"job": "neighbour-in-company", "params": {"pids": str(tmp_path / "neighbour")}})
    neighbour = noted(tmp_path / "neighbour")
    run_id = jobd.drop({"job": "obey-and-leave", "params": {"what": "a_daemon", "pids": str(tmp_path / "pid")}})
    pid = noted(tmp_path / "pid")
    assert jobd.result(run_id)["duration_seconds"] < TIMEOUT + PROMISED
    assert not alive(pid)
    assert not alive(neighbour)
    wait_until(lambda: noted(tmp_path / "neighbour") != neighbour)
    jobd.call("POST", f"/v1/runs/{beside}/cancel")
    result = jobd.result(beside)
    assert (result["result"], result["attempts"]) == ("undisturbed", 2)


# -- workers that end by themselves, and forkers


def test_what_a_crashed_worker_left_is_killed(daemon: Start, tmp_path: Path, contained: tuple[str, ...]) -> None:
    jobd = daemon(*JOBS, *contained, "--interruption-budget", "0")
    result = jobd.result(jobd.drop({"job": "crash-with-a-daemon", "params": {"pids": str(tmp_path / "pid")}}))
    assert result["reason"] == "worker_lost"
    assert not alive(noted(tmp_path / "pid"))


def test_a_runaway_forker_is_caught(daemon: Start, tmp_path: Path, contained: tuple[str, ...]) -> None:
    jobd = daemon(*JOBS, *contained, "--workers", "1")
    run_id = jobd.drop({"job": "bomb", "params": {"pids": str(tmp_path / "pid")}})
    result = jobd.result(run_id)
    assert result["reason"] == "timed_out"
    assert result["duration_seconds"] < TIMEOUT + PROMISED
    assert (tmp_path / "pid").exists()
    assert [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in (each.info["cmdline"] or [])] == []
    assert jobd.result(jobd.drop({"job": "pid"}))["status"] == "completed"


def test_orphans_that_ended_do_not_pile_up(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--cgroup", "off")
    result = jobd.result(jobd.drop({"job": "orphans", "params": {"number": 5}}))
    assert result["status"] == "completed"
    # It looks every 5 s, and reaps those that it saw the last time.
    wait_until(lambda: not psutil.Process(result["result"]).children(), within=40)


# -- status


def test_status_says_which_containment_is_in_force(daemon: Start, contained: tuple[str, ...]) -> None:
    jobd = daemon(*JOBS, *contained)
    kind = "process tree" if contained[1] == "off" else "cgroup"
    assert jobd.status()["containment"] == kind
    command = [sys.executable, "-m", "craft_easy_jobd", "status", "--root", str(jobd.root)]
    assert f"containment {kind}" in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_no_cgroup_is_left(daemon: Start, cgroup: Path) -> None:
    jobd = daemon(*JOBS, "--cgroup", str(cgroup), "--workers", "2")
    assert len(worker_cgroups(cgroup)) >= 2
    assert jobd.stop() == 0
    assert worker_cgroups(cgroup) == []


def test_a_cgroup_that_is_none_is_named(short_dir: Path) -> None:
    jobd = DaemonProcess(short_dir / "var", *JOBS, "--cgroup", str(short_dir))
    try:
        with pytest.raises(AssertionError, match=f"cgroup: {short_dir}: no folder of a cgroup2 tree"):
            jobd.start()
        assert jobd.wait() == 78
    finally:
        jobd.close()


# -- an earlier life


def test_leftovers_of_an_earlier_life_are_killed_before_anything_runs(
    daemon: Start, tmp_path: Path, contained: tuple[str, ...]
) -> None:
    jobd = daemon(*JOBS, *contained)
    jobd.drop({"job": "start-a-daemon", "params": {"pids": str(tmp_path / "pid")}})
    pid = noted(tmp_path / "pid")
    jobd.kill()
    assert alive(pid)
    jobd.start()
    assert not alive(pid)
    assert "processes that an earlier life left were killed" in jobd.log


def test_processes_of_another_daemon_are_left_alone(daemon: Start, tmp_path: Path, short_dir: Path) -> None:
    other = daemon(*JOBS, root=short_dir / "other")
    other.drop({"job": "start-a-daemon", "params": {"pids": str(tmp_path / "pid")}})
    pid = noted(tmp_path / "pid")
    jobd = daemon(*JOBS)
    jobd.kill()
    jobd.start()
    assert alive(pid)


# -- D state


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A file system to freeze: whoever writes to it then hangs in the kernel, beyond the reach of SIGKILL."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "losetup", "mount", "fsfreeze"))):
        pytest.skip("a file system can be frozen by root only, with e2fsprogs and util-linux")
    image, mount = tmp_path / "image", tmp_path / "mount"
    with image.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be mounted: {done.stderr.strip()}")

    def freeze() -> Path:
        subprocess.run(["fsfreeze", "--freeze", str(mount)], check=True)
        return mount

    try:
        yield freeze
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=False, capture_output=True)
        wait_until(lambda: subprocess.run(["umount", str(mount)], check=False, capture_output=True).returncode == 0)


def workers(jobd: DaemonProcess, isolation: str) -> dict[int, str]:
    return {each["pid"]: each["state"] for each in jobd.status()["workers"] if each["isolation"] == isolation}


@pytest.mark.timeout(90)
def test_a_worker_that_cannot_die_is_reported_and_its_slot_stays_closed(
    daemon: Start, tmp_path: Path, frozen: Callable[[], Path], contained: tuple[str, ...]
) -> None:
    jobd = daemon(*JOBS, *contained, "--workers", "2", "--dedicated-workers", "1")
    mount = frozen()
    params = {"path": str(mount / "file")}
    shared = jobd.drop({"job": "write-to", "params": {**params, "pids": str(tmp_path / "shared")}})
    alone = jobd.drop({"job": "write-to-alone", "params": {**params, "pids": str(tmp_path / "alone")}})
    pids = {shared: noted(tmp_path / "shared"), alone: noted(tmp_path / "alone")}
    for run_id, pid in pids.items():
        result = jobd.result(run_id)
        assert result["reason"] == "timed_out"
        assert f"its process {pid} hangs in the kernel" in result["error"]
        assert alive(pid)
        assert [problem for problem in jobd.status()["problems"] if str(pid) in problem and run_id in problem]
    # The one shared worker that is left does the work; the only dedicated one is taken.
    assert sorted(workers(jobd, "shared").values()) == ["ready", "stuck"]
    assert workers(jobd, "process") == {pids[alone]: "stuck"}
    waiting = jobd.drop({"job": "pid-alone"})
    assert jobd.result(jobd.drop({"job": "pid"}))["status"] == "completed"
    assert jobd.call("GET", f"/v1/runs/{waiting}")[1]["state"] == "queued"
    subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=True)
    assert jobd.result(waiting)["status"] == "completed"
    wait_until(lambda: list(workers(jobd, "shared").values()) == ["ready", "ready"])
    assert jobd.status()["problems"] == []


@pytest.mark.timeout(90)
def test_the_last_shared_worker_that_hangs_is_replaced_and_stop_does_not_wait_for_it(
    daemon: Start, tmp_path: Path, frozen: Callable[[], Path]
) -> None:
    jobd = daemon(*JOBS, "--workers", "1")
    mount = frozen()
    run_id = jobd.drop({"job": "write-to", "params": {"path": str(mount / "file"), "pids": str(tmp_path / "pid")}})
    pid = noted(tmp_path / "pid")
    assert jobd.result(run_id)["reason"] == "timed_out"
    assert jobd.result(jobd.drop({"job": "pid"}))["result"] != pid
    assert jobd.stop(within=10) == 0
    assert alive(pid)
    subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=True)
    wait_until(lambda: not alive(pid))


@pytest.mark.timeout(90)
def test_a_publishing_process_that_hangs_is_reported_and_no_second_one_writes_beside_it(
    daemon: Start, tmp_path: Path, frozen: Callable[[], Path]
) -> None:
    jobd = daemon(*JOBS, "--workers", "1", "--results", str(tmp_path / "mount" / "results"))
    pid = jobd.status()["publishing"]
    mount = frozen()
    run_id = jobd.drop({"job": "pid"})
    wait_until(lambda: f"results: the publishing process {pid} says nothing" in str(jobd.status()["problems"]))
    assert jobd.status()["runs"]["completed"] == 1
    os.kill(pid, signal.SIGKILL)
    assert alive(pid)
    assert jobd.status()["publishing"] == pid
    subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=True)
    wait_until(lambda: (mount / "results" / f"{run_id}.json").exists())
    wait_until(lambda: not jobd.status()["problems"])
    assert jobd.status()["publishing"] != pid
    assert jobd.stop() == 0
