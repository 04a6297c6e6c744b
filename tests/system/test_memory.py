"""What runs use is counted, and who uses more than it may is ended; with the real daemon, by process tree."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cgroups import own_cgroup
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until
from tests.system.memory_jobs import LIMIT_MB

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.memory_jobs", "--cgroup", "off")
MB = 1024**2
# Looks come four times a second; the rest is for a machine that is busy with other tests.
PROMISED_SECONDS = 10.0


@pytest.fixture(params=["process tree", "cgroup"])
def counted(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """The arguments for each kind of accounting."""
    if request.param == "process tree":
        yield JOBS
        return
    with own_cgroup("memory") as folder:
        yield (*JOBS[:-1], str(folder))


def drop(jobd: DaemonProcess, name: str, **params: Any) -> str:
    return jobd.drop({"job": name, "params": params})


def state(jobd: DaemonProcess, run_id: str) -> Any:
    """None before the request was taken in."""
    return jobd.call("GET", f"/v1/runs/{run_id}")[1].get("state")


def test_a_run_whose_child_takes_too_much_is_ended_and_its_neighbours_go_on(
    daemon: Start, counted: tuple[str, ...]
) -> None:
    jobd = daemon(*counted)
    neighbours = [drop(jobd, "beside"), drop(jobd, "beside-alone")]
    wait_until(lambda: all(state(jobd, run_id) == "running" for run_id in neighbours))
    result = jobd.result(drop(jobd, "limited", megabytes=2 * LIMIT_MB, seconds=60))
    assert result["duration_seconds"] < PROMISED_SECONDS
    assert (result["status"], result["reason"], result["attempts"]) == ("failed", "out_of_memory", 1)
    assert f"it may use {LIMIT_MB} MB" in result["error"]
    assert "raise its memory_limit_mb" in result["error"]
    assert result["peak_rss_bytes"] > LIMIT_MB * MB * 0.99
    for neighbour in neighbours:
        jobd.call("POST", f"/v1/runs/{neighbour}/cancel")
        assert jobd.result(neighbour)["result"] == "undisturbed"
        assert jobd.result(neighbour)["attempts"] == 1


def test_a_run_below_its_limit_passes_however_often_its_pages_are_counted(
    daemon: Start, counted: tuple[str, ...]
) -> None:
    jobd = daemon(*counted)
    result = jobd.result(drop(jobd, "limited", megabytes=LIMIT_MB // 2, seconds=1))
    assert (result["status"], result["result"]) == ("completed", "held")
    assert LIMIT_MB // 2 * MB < result["peak_rss_bytes"] < LIMIT_MB * MB


def test_too_much_memory_is_a_failure_that_is_retried(daemon: Start, counted: tuple[str, ...]) -> None:
    jobd = daemon(*counted)
    result = jobd.result(drop(jobd, "limited-itself"))
    assert (result["reason"], result["attempts"]) == ("out_of_memory", 2)
    own = [entry["message"] for entry in result["logs"] if entry["level"] == "info"]
    assert own == ["attempt 1", "attempt 2"]


def test_what_a_child_uses_is_counted(daemon: Start, counted: tuple[str, ...]) -> None:
    jobd = daemon(*counted)
    result = jobd.result(drop(jobd, "uses-a-child", megabytes=100))
    assert result["status"] == "completed"
    assert result["cpu_seconds"] >= 0.5
    assert 100 * MB < result["peak_rss_bytes"] < 300 * MB


def test_what_is_held_by_several_at_once_is_added_up(daemon: Start, counted: tuple[str, ...]) -> None:
    jobd = daemon(*counted)
    result = jobd.result(drop(jobd, "limited", megabytes=LIMIT_MB * 2 // 3, children=2, seconds=60))
    assert result["reason"] == "out_of_memory"


@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_run_does_not_pay_for_what_earlier_ones_left_in_the_worker(daemon: Start, workers: str) -> None:
    jobd = daemon(*JOBS, "--dedicated-workers", workers)
    assert jobd.result(drop(jobd, "leaves-much", megabytes=LIMIT_MB))["status"] == "completed"
    for _ in range(3):
        result = jobd.result(drop(jobd, "limited", megabytes=LIMIT_MB // 4, seconds=0.5))
        assert (result["status"], result["attempts"]) == ("completed", 1)


def test_runs_that_were_queued_before_their_job_got_a_limit_are_held_to_it(daemon: Start, tmp_path: Path) -> None:
    source = "import asyncio\nfrom craft_easy_jobs import job\n@job(name='late'LIMIT)\nasync def late(ctx): ...\n"
    source += "@job(name='wait')\nasync def wait(ctx): await asyncio.sleep(600)\n"
    module = tmp_path / "my_jobs.py"
    module.write_text(source.replace("LIMIT", ""))
    options = ("--jobs", str(module), "--workers", "1", "--slots", "1", "--cgroup", "off")
    jobd = daemon(*options)
    waiting = drop(jobd, "wait")
    wait_until(lambda: state(jobd, waiting) == "running")
    run_id = drop(jobd, "late")
    wait_until(lambda: state(jobd, run_id) == "queued")
    jobd.kill()
    module.write_text(source.replace("LIMIT", ", memory_limit_mb=64"))
    jobd.start()
    jobd.call("POST", f"/v1/runs/{waiting}/cancel", {"force": True})
    result = jobd.result(run_id)
    assert (result["status"], result["worker"]) == ("completed", "d1")


def test_status_says_how_it_is_counted(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    status = jobd.status()
    assert (status["accounting"], status["accounting_note"]) == ("process tree", "the setting cgroup is off")
    worker = status["workers"][0]
    assert worker["rss_bytes"] > 10 * MB
    # Forked, it has hardly used any yet.
    assert worker["cpu_seconds"] >= 0
    command = [sys.executable, "-m", "craft_easy_jobd", "status", "--root", str(jobd.root)]
    shown = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True, timeout=30
    ).stdout
    assert "accounting process tree (the setting cgroup is off)" in shown
