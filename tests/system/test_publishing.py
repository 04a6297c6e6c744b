"""The publishing process beside a daemon at work: it is killed and replaced, and is nobody's child to sweep."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.daemon import DaemonProcess
from tests.support.processes import wait_ended
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]
JOBS = ("--jobs", "tests.system.sample_jobs", "--workers", "1")


def publishing(jobd: DaemonProcess) -> int:
    """Its pid; there is one, but for a moment after its death."""
    return int(wait_until(lambda: jobd.status()["publishing"]))


def test_runs_go_on_while_it_is_killed_and_replaced(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    killed = set()
    for _ in range(5):
        run_ids = [jobd.drop({"job": "noop"}) for _ in range(20)]
        pid = publishing(jobd)
        assert pid not in killed
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: publishing(jobd) != pid)
        for run_id in run_ids:
            assert jobd.result(run_id)["status"] == "completed"
    assert "the publishing process was killed by SIGKILL" in jobd.log
    wait_until(lambda: not jobd.status()["problems"])
    assert jobd.stop() == 0


def test_it_stays_when_a_worker_is_killed_and_swept(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    pid = publishing(jobd)
    worker = jobd.status()["workers"][0]
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: worker["name"] not in [each["name"] for each in jobd.status()["workers"]])
    assert publishing(jobd) == pid
    jobd.result(jobd.drop({"job": "noop"}))


def test_it_has_what_workers_have_of_the_environment(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    environment = psutil.Process(publishing(jobd)).environ()
    assert "CRAFT_EASY_JOBS_INSTANCE" in environment
    assert "NOTIFY_SOCKET" not in environment


def test_what_an_earlier_life_left_of_it_is_killed_at_the_start(daemon: Start, short_dir: Path) -> None:
    """It dies with its daemon; unless the kernel keeps it, or somebody stops it in between."""
    jobd = daemon(*JOBS)
    jobd.result(jobd.drop({"job": "noop"}))
    process = psutil.Process(publishing(jobd))
    process.suspend()
    jobd.kill()
    jobd.start()
    wait_ended([process], within=5)
    jobd.result(jobd.drop({"job": "noop"}))


def test_a_stop_waits_until_all_is_published(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    process = psutil.Process(publishing(jobd))
    process.suspend()
    run_ids = [jobd.drop({"job": "noop"}) for _ in range(50)]
    wait_until(lambda: jobd.status()["runs"]["completed"] == 50)
    jobd.terminate()
    jobd.wait_notice("STOPPING=1")
    assert not jobd.results()
    process.resume()
    assert jobd.wait() == 0
    assert set(jobd.results()) == set(run_ids)
