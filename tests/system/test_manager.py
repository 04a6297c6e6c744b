"""The real daemon and its service manager: what is told when, and a control socket that outlives restarts."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from craft_easy_jobs.client import Client
from tests.support.daemon import DaemonProcess, Notice
from tests.support.waiting import wait_until

Start = Callable[..., DaemonProcess]

JOBS = ("--jobs", "tests.system.sample_jobs")


def told(daemon: DaemonProcess, line: str) -> list[Notice]:
    """The datagrams with a line that begins so."""
    return [each for each in daemon.datagrams if any(said.startswith(line) for said in each.lines)]


def started(daemon: DaemonProcess, run_id: str) -> None:
    """Wait until the job function of the run has said something."""
    wait_until(lambda: daemon.call("GET", f"/v1/runs/{run_id}")[1].get("log_count"))


# -- what is told


def test_ready_is_told_when_all_is_there(daemon: Start, short_dir: Path) -> None:
    jobd = DaemonProcess(short_dir / "var", *JOBS)
    waiting = jobd.drop({"job": "polite"})
    for number in range(4000):
        jobd.drop({"job": "noop", "run_id": f"later-{number}", "not_before": "2100-01-01T00:00:00Z"})
    try:
        jobd.start()
        assert {each.pid for each in jobd.datagrams} == {jobd.pid}
        assert (jobd.root / "results" / ".tmp").is_dir()
        assert not any((jobd.root / "spool" / "incoming").iterdir()), "READY before the spool was looked through"
        assert jobd.call("GET", f"/v1/runs/{waiting}")[0] == 200
        status = jobd.status()
        assert (status["state"], status["workers"][0]["state"] in ("ready", "starting")) == ("running", True)
        assert any(worker["state"] == "ready" for worker in status["workers"])
        assert told(jobd, "STATUS=starting: ")[0].at < told(jobd, "READY=1")[0].at
        wait_until(lambda: told(jobd, "STATUS=1 running, 0 queued; "))
        assert jobd.stop() == 0
        assert jobd.notices.count("READY=1") == jobd.notices.count("STOPPING=1") == 1
        assert told(jobd, "READY=1")[0].at < told(jobd, "STOPPING=1")[0].at
    finally:
        jobd.close()


def test_the_watchdog_is_fed_from_start_to_end(daemon: Start) -> None:
    jobd = daemon(*JOBS, env={"WATCHDOG_USEC": "900000"})
    started(jobd, jobd.drop({"job": "obeys-late"}))
    jobd.signal(signal.SIGSTOP)
    frozen = len(told(jobd, "WATCHDOG=1"))
    assert frozen
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped + 1.0)
    assert len(told(jobd, "WATCHDOG=1")) <= frozen + 1
    jobd.signal(signal.SIGCONT)
    wait_until(lambda: len(told(jobd, "WATCHDOG=1")) > frozen + 1)
    assert jobd.stop() == 0
    fed = [each.at for each in told(jobd, "WATCHDOG=1")]
    [stopping] = told(jobd, "STOPPING=1")
    assert sum(at > stopping.at for at in fed) > 3, "the watchdog starves while the daemon drains"


_HANGING_DUTIES = """
import asyncio
import craft_easy_jobd.supervisor as supervisor, craft_easy_jobd.tenancy as tenancy
async def refresh(self):
    await asyncio.sleep(3600)
supervisor._DUTIES_SECONDS = 1.5
tenancy.Tenancy.refresh = refresh
"""


def test_a_daemon_that_does_not_do_its_duties_does_not_feed_the_watchdog(daemon: Start, short_dir: Path) -> None:
    (short_dir / "sitecustomize.py").write_text(_HANGING_DUTIES)
    jobd = daemon(*JOBS, env={"WATCHDOG_USEC": "600000", "PYTHONPATH": str(short_dir)})
    wait_until(lambda: any("not healthy: what is due each second is not done" in said for said in jobd.notices))
    fed = len(told(jobd, "WATCHDOG=1"))
    assert fed
    # The status goes on, a line each second.
    wait_until(lambda: sum("not healthy: " in said for said in jobd.notices) > 2)
    assert len(told(jobd, "WATCHDOG=1")) == fed
    assert "the watchdog is no longer fed" in jobd.log
    assert jobd.stop() == 0


def test_a_watchdog_of_another_process_is_left_alone(daemon: Start) -> None:
    jobd = daemon(*JOBS, env={"WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"})
    jobd.result(jobd.drop({"job": "sleep-1"}))
    assert not told(jobd, "WATCHDOG=1")


def test_more_time_is_asked_for_while_a_drain_waits(daemon: Start) -> None:
    jobd = daemon(*JOBS)
    run_id = jobd.drop({"job": "obeys-late"})
    started(jobd, run_id)
    assert not any(each.at > told(jobd, "READY=1")[0].at for each in told(jobd, "EXTEND_TIMEOUT_USEC="))
    jobd.terminate()
    jobd.wait_notice("STOPPING=1")
    [stopping] = told(jobd, "STOPPING=1")
    wait_until(lambda: told(jobd, "STATUS=draining: 1 running, 0 queued; "))
    assert jobd.wait() == 0
    ended = time.monotonic()
    asked = [each for each in told(jobd, "EXTEND_TIMEOUT_USEC=") if each.at >= stopping.at]
    assert asked[0].at == stopping.at or asked[0].at - stopping.at < 1.0
    # Each is followed by another one, or by the end, long before what it asked for is over.
    times = [*(each.at for each in asked), ended]
    assert max(later - earlier for earlier, later in pairwise(times)) < 3.0
    assert all(line == "EXTEND_TIMEOUT_USEC=15000000" for each in asked for line in each.lines if "EXTEND" in line)
    assert ended - stopping.at > 2.0
    assert jobd.result(run_id)["result"] == "cleaned up"


# -- what jobs get to see of it


def test_what_the_manager_gave_to_the_daemon_does_not_reach_jobs(
    daemon: Start, short_dir: Path, listener: socket.socket
) -> None:
    (short_dir / "token").write_text("hidden")
    given = {
        "WATCHDOG_USEC": "5000000",
        "CREDENTIALS_DIRECTORY": str(short_dir),
        "JOURNAL_STREAM": "8:1",
        "INVOCATION_ID": "0123456789abcdef0123456789abcdef",
        "MAINPID": "1",
        "SYSTEMD_EXEC_PID": "1",
        "MEMORY_PRESSURE_WATCH": "/dev/null",
        "KEPT": "this",
    }
    jobd = daemon(*JOBS, env=given, listener=listener)
    seen = jobd.result(jobd.drop({"job": "surroundings"}))["result"]
    names = {
        "environ": set(seen["environ"]),
        "own": {entry.partition("=")[0] for entry in seen["own"]},
        "child": {entry.partition("=")[0] for entry in seen["child"]},
    }
    mine = {*given, "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} - {"KEPT"}
    for where, found in names.items():
        assert "KEPT" in found
        assert not found & mine, where
    ours = (f"socket:[{os.fstat(listener.fileno()).st_ino}]", str(jobd.root))
    assert not [fd for fd in seen["fds"] if fd.startswith(ours)]
    assert jobd.result(jobd.drop({"job": "credential"}))["result"] == "h"


def test_the_credentials_of_the_settings_are_those_of_jobs(daemon: Start, short_dir: Path) -> None:
    (short_dir / "token").write_text("hidden")
    jobd = daemon(*JOBS, "--credentials", str(short_dir))
    assert jobd.result(jobd.drop({"job": "credential"}))["result"] == "h"
    (short_dir / "token").unlink()
    failed = jobd.result(jobd.drop({"job": "credential"}))
    assert (failed["status"], failed["reason"]) == ("failed", "exception")
    assert f"credential 'token': there is none in {short_dir}; there are: none" in failed["error"]
    assert "hidden" not in jobd.log


# -- the control socket from the service manager


@pytest.fixture
def listener(short_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        (short_dir / "var").mkdir()
        sock.bind(str(short_dir / "var" / "control.sock"))
        sock.listen(4096)
        yield sock


class Clients:
    """Clients that submit runs one after the other, until they are told to end."""

    def __init__(self, path: Path, count: int) -> None:
        self.submitted: list[str] = []
        self.errors: list[Exception] = []
        self.over = threading.Event()
        self._client = Client(str(path))
        self._threads = [threading.Thread(target=self._submit, args=[number]) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(60)

    def _submit(self, number: int) -> None:
        while not self.over.is_set():
            try:
                self.submitted.append(self._client.submit("echo", {"value": number}))
                self._client.status()
            except Exception as error:
                self.errors.append(error)
                return


def test_no_request_is_refused_while_the_daemon_restarts(daemon: Start, listener: socket.socket) -> None:
    jobd = daemon(*JOBS, listener=listener)
    with Clients(Path(listener.getsockname()), 4) as clients:
        for _ in range(5):
            so_far = len(clients.submitted)
            wait_until(lambda so_far=so_far: clients.errors or len(clients.submitted) >= so_far + 10)
            assert jobd.stop() == 0
            jobd.start()
    assert clients.errors == []
    assert len(clients.submitted) >= 50
    for run_id in clients.submitted:
        assert jobd.result(run_id)["status"] == "completed"
    assert jobd.stop() == 0
    assert Path(listener.getsockname()).is_socket()


def test_who_asks_while_modules_are_imported_is_not_told_that_there_is_no_such_job(
    daemon: Start, listener: socket.socket, short_dir: Path
) -> None:
    module = short_dir / "slow_jobs.py"
    module.write_text("import time\ntime.sleep(2)\nfrom tests.system.sample_jobs import *\n")
    jobd = DaemonProcess(short_dir / "var", "--jobs", str(module), listener=listener)
    try:
        jobd.launch()
        run_id = Client(str(listener.getsockname())).submit("noop")
        assert jobd.result(run_id)["status"] == "completed"
    finally:
        jobd.close()


def test_requests_wait_for_a_daemon_that_is_not_there_yet(daemon: Start, listener: socket.socket) -> None:
    client = Client(str(listener.getsockname()))
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda value=value: answers.append(client.submit("echo", {"value": value})))
        for value in range(40)
    ]
    for thread in threads:
        thread.start()
    jobd = daemon(*JOBS, listener=listener)
    for thread in threads:
        thread.join(30)
    assert len(set(answers)) == 40
    assert {jobd.result(run_id)["status"] for run_id in answers} == {"completed"}


def test_who_has_connected_before_a_stop_is_answered(daemon: Start, listener: socket.socket) -> None:
    jobd = daemon(*JOBS, listener=listener)
    with socket.socket(socket.AF_UNIX) as early, socket.socket(socket.AF_UNIX) as late:
        early.settimeout(30)
        late.settimeout(30)
        early.connect(listener.getsockname())
        early.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{")
        wait_until(lambda: jobd.status()["state"] == "running")
        jobd.terminate()
        jobd.wait_notice("STOPPING=1")
        early.sendall(b'"job": "noop"}')
        assert early.recv(4096).startswith(b"HTTP/1.1 202 ")
        assert early.recv(4096) == b""
        jobd.wait()
        late.connect(listener.getsockname())
        late.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        jobd.start()
        assert late.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_socket_that_cannot_be_used_ends_the_daemon_at_once(short_dir: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        jobd = DaemonProcess(short_dir / "var", *JOBS, listener=client)
        jobd.launch()
        assert jobd.wait() == 78
        log = jobd.log
        jobd.close()
    assert "Traceback" not in log
    assert "no unix stream socket that listens" in log
    assert os.path.exists(listener.getsockname())
