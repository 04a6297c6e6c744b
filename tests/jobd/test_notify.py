"""The service manager's protocol by itself: notices out, the control socket in, what the watchdog is fed for."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from craft_easy_jobd.lane import Lane
from craft_easy_jobd.manager import Manager, Vital, summary, watchdog_seconds
from craft_easy_jobd.notify import notify
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.states import RunState
from tests.jobd.ledgers import opened
from tests.support.waiting import wait_until


class Receiver:
    """A service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)
        self.datagrams: list[str] = []

    def take(self) -> list[str]:
        """All datagrams so far."""
        with suppress(BlockingIOError):
            while True:
                self.datagrams.append(self.socket.recv(4096).decode())
        return self.datagrams

    def lines(self) -> list[str]:
        return [line for datagram in self.take() for line in datagram.splitlines()]

    def fill(self) -> None:
        """Leave no room for another datagram."""
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sender, suppress(BlockingIOError):
            while True:
                sender.sendto(b"STATUS=busy", self.socket.getsockname())


@pytest.fixture
def receiver(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    address = str(short_dir / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    receiver = Receiver(address)
    yield receiver
    receiver.socket.close()


# -- sd_notify


def test_lines_go_out_in_one_datagram(receiver: Receiver) -> None:
    assert notify("RELOADING=1", "MONOTONIC_USEC=5")
    assert receiver.take() == ["RELOADING=1\nMONOTONIC_USEC=5"]


def test_abstract_sockets_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"jobd-test-{os.getpid()}"
    receiver = Receiver(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    assert notify("READY=1")
    assert receiver.take() == ["READY=1"]
    receiver.socket.close()


def test_a_manager_that_is_busy_or_gone_neither_holds_us_up_nor_raises(receiver: Receiver) -> None:
    receiver.fill()
    assert not notify("READY=1")
    receiver.take()
    assert notify("READY=1")
    receiver.socket.close()
    assert not notify("READY=1")


def test_without_a_manager_nobody_has_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1")


# -- socket activation

_TAKE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid()) if sys.argv[1] == "ours" else "1"
from craft_easy_jobd.notify import take_listener
from craft_easy_jobs.errors import CraftEasyJobsError
try:
    sock = take_listener("control")
except CraftEasyJobsError as error:
    print("refused:", error)
else:
    print(sock and sock.getsockname(), os.get_inheritable(3), [name for name in os.environ if "LISTEN" in name])
"""


def take(fd: int, *, pid: str = "ours", names: str = "control", count: str = "1") -> str:
    """What `take_listener` makes of a descriptor that a manager hands over as number 3."""
    env = {**os.environ, "LISTEN_FDS": count, "LISTEN_FDNAMES": names, "PYTHONPATH": ":".join(sys.path)}
    command = ["bash", "-c", f'exec "$0" -c "$1" {pid} 3<&{fd}', sys.executable, _TAKE]
    done = subprocess.run(command, env=env, pass_fds=[fd], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert not done.stderr, done.stderr
    return done.stdout.decode().strip()


@pytest.fixture
def listener(short_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(short_dir / "s"))
        sock.listen()
        yield sock


def test_the_managers_socket_is_taken_and_kept_from_children(listener: socket.socket) -> None:
    assert take(listener.fileno()) == f"{listener.getsockname()} False []"


def test_what_was_handed_to_another_process_is_not_ours(listener: socket.socket) -> None:
    assert take(listener.fileno(), pid="other") == "None True []"
    assert take(listener.fileno(), count="0") == "None True []"
    assert take(listener.fileno(), count="many") == "None True []"


def test_a_socket_of_another_name_is_refused(listener: socket.socket) -> None:
    for names in ("", "craft-easy-jobd.socket"):
        assert "expected one socket named 'control'" in take(listener.fileno(), names=names)
        assert "FileDescriptorName=control" in take(listener.fileno(), names=names)


def test_what_is_no_listening_unix_socket_is_refused(listener: socket.socket, short_dir: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        assert "no unix stream socket that listens" in take(tcp.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(listener.getsockname())
        assert "no unix stream socket that listens" in take(client.fileno())
    with open(short_dir / "file", "w") as file:
        assert "is no socket" in take(file.fileno())


def test_a_descriptor_that_is_not_there_is_refused(listener: socket.socket) -> None:
    assert "file descriptor 4 is not open" in take(listener.fileno(), count="2", names="control:more")


# -- what the manager is told


@asynccontextmanager
async def telling(*, describe: Callable[[], str] = lambda: "", stalled: Callable[[], float] = lambda: 0.0):  # type: ignore[no-untyped-def]
    manager = Manager(describe=describe, vitals=[Vital("the ledger does not commit", stalled, 10.0)])
    task = asyncio.create_task(manager.run())
    try:
        yield manager
    finally:
        task.cancel()
        await asyncio.wait({task})


async def within(fact: Callable[[], object], seconds: float = 10.0) -> None:
    await asyncio.to_thread(wait_until, fact, within=seconds)


async def test_ready_is_told_again_until_it_is_taken(receiver: Receiver) -> None:
    async with telling() as manager:
        receiver.fill()
        manager.ready()
        manager.reloading()
        manager.ready()
        assert "READY=1" not in receiver.take()
        await within(lambda: receiver.take().count("READY=1") == 2)
    told = [datagram.partition("\n")[0] for datagram in receiver.take() if "=busy" not in datagram]
    assert [each for each in told if each in ("READY=1", "RELOADING=1")] == ["READY=1", "RELOADING=1", "READY=1"]


async def test_a_reload_is_told_with_its_time(receiver: Receiver) -> None:
    async with telling() as manager:
        before = time.monotonic_ns() // 1000
        manager.reloading()
        [told] = [each for each in receiver.take() if each.startswith("RELOADING=1\n")]
        assert before <= int(told.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


async def test_status_is_told_when_it_changes_and_at_most_once_a_second(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    said: list[float] = []
    begun = time.monotonic()
    async with telling(describe=lambda: f"{len(said)}\nand {said.append(time.monotonic())}"):
        await within(lambda: sum("STATUS" in line for line in receiver.lines()) >= 1 and len(said) > 50)
    told = {line for line in receiver.lines() if line.startswith("STATUS=")}
    assert 1 <= len(told) <= 1 + time.monotonic() - begun
    receiver.datagrams.clear()
    async with telling(describe=lambda: "the same"):
        await within(lambda: receiver.lines().count("WATCHDOG=1") > 40)
    assert receiver.lines().count("STATUS=the same") == 1


async def test_the_watchdog_is_fed_only_while_healthy(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    stalled = [0.0]
    async with telling(describe=lambda: "2 running", stalled=lambda: stalled[0]):
        await within(lambda: receiver.lines().count("WATCHDOG=1") > 3)
        stalled[0] = 11.0
        await within(lambda: "STATUS=2 running; not healthy: the ledger does not commit for 11 s" in receiver.lines())
        fed = receiver.lines().count("WATCHDOG=1")
        stalled[0] = 12.0  # Four beats later, as the status may be told each second.
        await within(lambda: "STATUS=2 running; not healthy: the ledger does not commit for 12 s" in receiver.lines())
        assert receiver.lines().count("WATCHDOG=1") == fed
        stalled[0] = 0.0
        await within(lambda: receiver.lines().count("WATCHDOG=1") > fed)


async def test_more_time_is_asked_for_only_while_it_is_allowed_and_healthy(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    stalled = [0.0]

    def asked() -> list[int]:
        return [int(each.partition("=")[2]) for each in receiver.lines() if each.startswith("EXTEND_TIMEOUT_USEC=")]

    async with telling(stalled=lambda: stalled[0]) as manager:
        assert not asked()
        manager.allow(600.0)
        await within(lambda: asked().count(15_000_000) > 2)
        manager.ready()
        while_ready = len(asked())
        fed = receiver.lines().count("WATCHDOG=1")
        await within(lambda: receiver.lines().count("WATCHDOG=1") > fed + 3)
        assert len(asked()) == while_ready
        manager.stopping(within=1.0)
        manager.stopping(within=1000.0)
        manager.ready()
        assert receiver.lines().count("STOPPING=1") == 1
        assert receiver.lines().count("READY=1") == 1
        await within(lambda: asked()[-1] < 200_000)
        assert max(asked()[while_ready:]) <= 1_000_000
        # 0.2 s are left, at a beat each 0.05 s.
        nearly_over = len(asked())
        fed = receiver.lines().count("WATCHDOG=1")
        await within(lambda: receiver.lines().count("WATCHDOG=1") > fed + 20)
        assert len(asked()) <= nearly_over + 5
        over = len(asked())
        stalled[0] = 11.0
        manager.allow(600.0)
        assert len(asked()) == over


def test_only_a_watchdog_that_is_ours_is_fed() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 7) == 30.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000"}, 7) == 30.0
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 7) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "0"}, 7) is None
    assert watchdog_seconds({}, 7) is None


def test_the_status_says_what_goes_on_and_what_is_in_the_way() -> None:
    counts = {**dict.fromkeys(RunState, 0), RunState.RUNNING: 2, RunState.STOPPING: 1, RunState.QUEUED: 12}
    assert summary("running", counts, 2, []) == "3 running, 12 queued; 2 workers"
    assert summary("draining", counts, 1, ["ledger: disk full"]) == (
        "draining: 3 running, 12 queued; 1 worker; ledger: disk full"
    )


# -- what health is


async def test_a_commit_that_does_not_end_is_seen(tmp_path: Path) -> None:
    async with opened(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        assert ledger.stalled_seconds == 0.0
        disk = threading.Event()
        stuck = ledger._writer.call(lambda db: disk.wait(30))
        behind = ledger.cancel("nobody")
        await within(lambda: ledger.stalled_seconds > 0.05)
        disk.set()
        assert await stuck
        assert await behind is None
        assert ledger.stalled_seconds == 0.0


async def test_a_call_to_the_file_system_that_does_not_return_is_seen() -> None:
    lane, disk = Lane("spool"), threading.Event()
    call = asyncio.create_task(lane.call(disk.wait, 30))
    await within(lambda: lane.stalled_seconds > 0.05)
    disk.set()
    assert await call
    assert lane.stalled_seconds == 0.0
    lane.close()
