"""The life of the service under a real systemd: start, watchdog, restart, stop, crash."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.machine import needed
from tests.support.service import JOBS, SOCKET_UNIT, STATE, UNIT, Service
from tests.support.waiting import wait_until

pytestmark = needed()


def results(service: Service, runs: list[str]) -> list[object]:
    return [service.result(run)["result"] for run in runs]


def test_start_returns_when_it_is_ready(service: Service) -> None:
    service.systemctl("start")
    assert service.show("ActiveState") == "active"
    assert service.status()["state"] == "running"
    assert results(service, [service.submit("quick")]) == [1]
    run = service.submit("obedient")
    service.wait_state(run, "running")
    wait_until(lambda: "1 running" in service.show("StatusText"))


def test_a_frozen_daemon_is_killed_and_its_runs_come_back(service: Service) -> None:
    service.drop_in("WatchdogSec=2s", "TimeoutAbortSec=2s")
    service.systemctl("start")
    run = service.submit("interrupted")
    service.wait_state(run, "running")
    service.machine.run("kill", "-STOP", str(service.pid))
    service.wait_show("NRestarts", "1")
    service.wait_show("ActiveState", "active")
    assert results(service, [run]) == ["second start"]
    assert service.starts(run) == 2
    assert "Watchdog timeout" in service.log


def test_a_restart_under_load_loses_nothing(service: Service) -> None:
    service.configure("workers = 1\nslots = 4\ndrain_timeout = 1.0")
    service.systemctl("start")
    flaky = [service.drop({"job": "flaky"}) for _ in range(20)]
    wait_until(lambda: all(service.starts(run) for run in flaky))
    stubborn = [service.drop({"job": "interrupted"}) for _ in range(2)]
    obedient = [service.drop({"job": "obedient"}) for _ in range(2)]
    for run in (*stubborn, *obedient):
        service.wait_state(run, "running")
    queued = [service.drop({"job": "quick"}) for _ in range(100)]
    wait_until(lambda: service.status()["runs"]["queued"] >= len(queued))
    assert service.status()["runs"]["retrying"] > 0

    service.systemctl("restart")

    assert results(service, stubborn) == ["second start"] * 2
    assert results(service, obedient) == ["asked to stop"] * 2
    assert results(service, flaky) == [2] * len(flaky)
    assert results(service, queued) == [1] * len(queued)
    assert {run: service.starts(run) for run in (*obedient, *queued)} == dict.fromkeys((*obedient, *queued), 1)
    assert {run: service.starts(run) for run in stubborn} == dict.fromkeys(stubborn, 2)
    assert service.results().keys() == {*stubborn, *obedient, *flaky, *queued}
    assert service.show("NRestarts") == "0"


def test_a_reload_brings_new_code_to_new_runs(service: Service) -> None:
    service.systemctl("start")
    old = service.drop({"job": "obedient"})
    service.wait_state(old, "running")
    before = service.submit("quick")
    service.machine.put(
        JOBS, service.machine.run("cat", JOBS).stdout.replace("return ctx.attempt", "return 'new code'")
    )
    service.systemctl("reload")
    after = service.submit("quick")
    assert results(service, [before, after]) == [1, "new code"]
    service.command("cancel", old)
    assert results(service, [old]) == ["asked to stop"]
    versions = [service.result(run)["code_version"] for run in (before, old, after)]
    assert versions[0] == versions[1] != versions[2]
    assert service.show("NRestarts") == "0"


def test_a_reload_of_what_is_wrong_fails_and_the_old_stays(service: Service) -> None:
    service.systemctl("start")
    good = service.machine.run("cat", JOBS).stdout
    main, run = service.pid, service.drop({"job": "obedient"})
    service.wait_state(run, "running")
    for settings, module, problem in (("no_such_key = 1", good, "no_such_key"), ("", "def", "service_jobs.py")):
        service.configure(settings)
        service.machine.put(JOBS, module)
        refused = service.machine.run("systemctl", "reload", UNIT, check=False)
        assert refused.returncode != 0
        assert problem in service.log
        assert results(service, [service.submit("quick")]) == [1]
    service.machine.put(JOBS, good)
    assert (service.pid, service.show("ActiveState"), service.show("NRestarts")) == (main, "active", "0")
    service.wait_state(run, "running", within=0.0)


def test_requests_made_while_it_restarts_are_answered(service: Service) -> None:
    service.drop_in("StartLimitIntervalSec=0", section="Unit")
    service.machine.run("systemctl", "start", SOCKET_UNIT)
    # By the first request, not by us.
    assert service.status()["state"] in ("starting", "running")
    service.wait_show("ActiveState", "active")
    answers: list[object] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            try:
                answers.append(service.call("GET", "/v1/status")[0])
            except OSError as error:
                answers.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(5):
            service.systemctl("restart")
    finally:
        enough.set()
        asking.join(30)
    assert len(answers) > 5
    assert set(answers) == {200}
    service.machine.run("systemctl", "stop", SOCKET_UNIT)


def test_a_drain_may_take_longer_than_the_unit_allows_a_stop(service: Service) -> None:
    service.configure("drain_timeout = 20.0")
    service.drop_in("TimeoutStopSec=1s")
    service.systemctl("start")
    runs = [service.drop({"job": "obedient", "params": {"seconds": 3}}) for _ in range(50)]
    wait_until(lambda: service.status()["runs"]["running"] == len(runs))
    before = time.monotonic()
    service.systemctl("stop")
    assert time.monotonic() - before > 3
    assert service.show("Result") == "success"
    assert results(service, runs) == ["asked to stop"] * len(runs)


@contextmanager
def held(pid: int, folder: Path) -> Iterator[None]:
    """The process's main thread gets no further than its next system call, and no SIGCONT helps, as SIGSTOP would."""
    log = folder / "strace"
    command = ["strace", "-p", str(pid), "-e", "inject=all:delay_enter=100s", "-o", "/dev/null"]
    with log.open("wb") as said:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        wait_until(lambda: b"attached" in log.read_bytes() or tracer.poll() is not None)
        assert tracer.poll() is None, log.read_text()
        yield
    finally:
        tracer.kill()
        tracer.wait(10)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_daemon_that_hangs_does_not_outlive_its_stop(service: Service, tmp_path: Path) -> None:
    service.drop_in("TimeoutStopSec=2s")
    service.systemctl("start")
    run = service.submit("interrupted")
    service.wait_state(run, "running")
    with held(service.outer_pid, tmp_path):
        service.systemctl("stop", "--no-block")
        wait_until(lambda: "timed out. Killing" in service.log)
    service.wait_show("ActiveState", "failed")
    assert service.show("Result") == "timeout"
    assert service.processes == set()
    service.machine.run("systemctl", "reset-failed")
    service.systemctl("start")
    assert results(service, [run]) == ["second start"]


def test_a_supervisor_that_is_killed_leaves_nothing_and_its_runs_come_back(service: Service) -> None:
    service.systemctl("start")
    run = service.submit("family")
    service.wait_state(run, "running")
    first = service.processes
    assert len(first) > 4
    service.machine.run("kill", "-KILL", str(service.pid))
    service.wait_show("NRestarts", "1")
    service.wait_show("ActiveState", "active")
    assert results(service, [run]) == ["second start"]
    assert not first & service.processes
    assert not [pid for pid in first if Path(f"/proc/{pid}").exists()]


def test_a_crash_loop_ends(service: Service) -> None:
    service.drop_in("RestartSec=100ms")
    service.machine.run("install", "-d", "-o", "craft-easy-jobd", f"{STATE}/state")
    service.machine.put(f"{STATE}/state/ledger.db", "not a database" * 1000)
    service.machine.run("systemctl", "start", UNIT, check=False)
    wait_until(lambda: "Start request repeated too quickly" in service.log)
    assert service.show("ActiveState") == "failed"
    assert service.show("NRestarts") == "5"
    assert "ledger.db" in service.log


def test_wrong_settings_are_told_and_not_tried_again(service: Service) -> None:
    service.configure("no_such_key = 1")
    service.machine.run("systemctl", "start", UNIT, check=False)
    assert service.show("ActiveState") == "failed"
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("78", "0")
    assert "no_such_key" in service.log
    assert "Traceback" not in service.log
