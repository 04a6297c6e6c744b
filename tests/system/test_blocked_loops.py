"""A run that blocks its worker's loop is named within a second, and nobody else ever is."""

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from craft_easy_jobd.rendering import status_text
from craft_easy_jobs.client import Client
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.blocking_jobs")
ADVICE = "use await asyncio.to_thread(...)"


def entries(jobd: DaemonProcess, run_id: str) -> list[Any]:
    return list(Client(root=str(jobd.root)).logs(run_id))


def begun(jobd: DaemonProcess, run_id: str) -> Any:
    """The first entry of the run's log."""
    wait_until(lambda: jobd.call("GET", f"/v1/runs/{run_id}")[1].get("log_count"))
    return entries(jobd, run_id)[0]


def warning(jobd: DaemonProcess, run_id: str) -> Any:
    """The run's only warning, when it is there."""
    found = wait_until(lambda: [entry for entry in entries(jobd, run_id) if entry["level"] == "warning"])
    assert len(found) == 1
    return found[0]


def named_within_a_second(jobd: DaemonProcess, run_id: str, place: str) -> str:
    began = float(begun(jobd, run_id)["message"])
    entry = warning(jobd, run_id)
    assert datetime.fromisoformat(entry["timestamp"]).timestamp() - began < 1.0
    assert "blocks the event loop of its worker for 0." in entry["message"]
    assert place in entry["message"]
    assert ADVICE in entry["message"]
    return str(entry["message"])


def end(jobd: DaemonProcess, run_id: str) -> dict[str, Any]:
    jobd.call("POST", f"/v1/runs/{run_id}/cancel", {"force": True})
    return jobd.result(run_id)


def blocked(jobd: DaemonProcess) -> list[dict[str, Any]]:
    return [worker for worker in jobd.status()["workers"] if worker["blocked"]]


def no_alarm(jobd: DaemonProcess, runs: list[str]) -> None:
    assert {run_id: jobd.result(run_id)["warnings"] for run_id in runs} == dict.fromkeys(runs, 0)
    assert "event loop" not in jobd.log


@pytest.mark.parametrize("way", ["compute", "spin", "match", "derive", "descend"])
def test_the_run_is_named_and_new_ones_go_elsewhere(daemon: Start, way: str) -> None:
    jobd = daemon(*JOBS, "--workers", "2")
    beside = [jobd.drop({"job": "wait"}) for _ in range(4)]
    for run_id in beside:
        begun(jobd, run_id)
    run_id = jobd.drop({"job": "block", "params": {"way": way}})
    place = {"descend": "compute"}.get(way, way)
    assert 'isolation="process"' in named_within_a_second(jobd, run_id, f" in {place};")
    (worker,) = blocked(jobd)
    assert worker["blocked"]["run_id"] == run_id
    assert worker["blocked"]["place"].startswith("blocking_jobs.py:")
    assert f"blocked: {worker['name']} by run {run_id} at blocking_jobs.py:" in status_text(jobd.status())
    elsewhere = {jobd.result(jobd.drop({"job": "where"}))["result"] for _ in range(4)}
    assert len(elsewhere) == 1
    assert worker["pid"] not in elsewhere
    result = end(jobd, run_id)
    assert (result["reason"], result["warnings"]) == ("cancelled", 1)
    assert {end(jobd, each)["warnings"] for each in beside} == {0}


@pytest.mark.parametrize("way", ["compute", "match"])
def test_a_dedicated_worker_too(daemon: Start, way: str) -> None:
    jobd = daemon(*JOBS)
    run_id = jobd.drop({"job": "block-alone", "params": {"way": way}})
    assert "isolation" not in named_within_a_second(jobd, run_id, f" in {way};")
    assert [worker["isolation"] for worker in blocked(jobd)] == ["process"]


def test_a_run_is_named_for_a_task_that_it_started(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--workers", "1")
    beside = [jobd.drop({"job": "wait"}) for _ in range(3)]
    for run_id in beside:
        begun(jobd, run_id)
    run_id = jobd.drop({"job": "block-in-a-task"})
    named_within_a_second(jobd, run_id, " in compute;")
    assert [worker["blocked"]["run_id"] for worker in blocked(jobd)] == [run_id]


def test_when_the_loop_turns_again_all_is_as_before(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--workers", "1")
    run_id = jobd.drop({"job": "block", "params": {"way": "compute", "seconds": 1.5, "then": 1.0}})
    wait_until(lambda: blocked(jobd))
    waiting = jobd.drop({"job": "where"})
    wait_until(lambda: jobd.status()["runs"]["queued"] == 1)
    assert jobd.result(waiting)["attempts"] == 1
    assert not blocked(jobd)
    result = jobd.result(run_id)
    assert (result["status"], result["warnings"]) == ("completed", 1)
    assert [entry["level"] for entry in result["logs"]] == ["info", "warning", "info"]
    assert result["logs"][2]["message"].startswith("the event loop of its worker turns again, after 1.")


def test_what_belongs_to_no_run_accuses_none(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--workers", "1")
    runs = [jobd.drop({"job": "wait"}), jobd.drop({"job": "block-in-a-callback"})]
    (worker,) = wait_until(lambda: blocked(jobd))
    assert worker["blocked"]["run_id"] is None
    assert worker["blocked"]["place"].endswith(" in compute")
    wait_until(lambda: not blocked(jobd))
    assert {end(jobd, run_id)["warnings"] for run_id in runs} == {0}


def test_a_supervisor_that_was_stopped_itself_raises_no_alarm(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    runs = [jobd.drop({"job": "wait"}) for _ in range(4)]
    for run_id in runs:
        begun(jobd, run_id)
    jobd.signal(signal.SIGSTOP)
    until = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > until)
    jobd.signal(signal.SIGCONT)
    for _ in range(2):
        runs.append(jobd.drop({"job": "a-second"}))
        jobd.result(runs[-1])
    assert jobd.stop() == 0
    no_alarm(jobd, runs)


def test_a_worker_that_is_stopped_accuses_no_run(daemon: Start) -> None:
    jobd = daemon(*JOBS, "--workers", "2")
    runs = [jobd.drop({"job": "wait"}) for _ in range(4)]
    for run_id in runs:
        begun(jobd, run_id)
    victim, other = (worker["pid"] for worker in jobd.status()["workers"] if worker["isolation"] == "shared")
    os.kill(victim, signal.SIGSTOP)
    (worker,) = wait_until(lambda: blocked(jobd))
    assert (worker["pid"], worker["blocked"]["stopped"], worker["blocked"]["run_id"]) == (victim, True, None)
    assert f"blocked: {worker['name']} is stopped by a signal" in status_text(jobd.status())
    assert {jobd.result(jobd.drop({"job": "where"}))["result"] for _ in range(4)} == {other}
    os.kill(victim, signal.SIGCONT)
    wait_until(lambda: not blocked(jobd))
    assert jobd.stop() == 0
    assert {jobd.result(run_id)["warnings"] for run_id in runs} == {0}


def test_many_quick_runs_raise_no_alarm(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    runs = [jobd.drop({"job": "quick"}) for _ in range(200)]
    wait_until(lambda: len(jobd.results()) == 200, within=30)
    assert jobd.stop() == 0
    no_alarm(jobd, runs)


@pytest.mark.parametrize("way", ["close", "replace", "fill", "handle", "default", "block"])
def test_a_job_that_spoils_the_means_is_named_without_the_place(daemon: Start, way: str, tmp_path: Path) -> None:
    jobd = daemon(*JOBS)
    file = tmp_path / "settlement"
    file.write_text("rows")
    params = {"spoil": way, "file": str(file), "way": "compute"}
    run_id = jobd.drop({"job": "spoil", "params": params})
    named_within_a_second(jobd, run_id, " in compute;" if way == "fill" else " s; ")
    assert end(jobd, run_id)["attempts"] == 1
    assert file.read_text() == "rows"
