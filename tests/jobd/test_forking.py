"""Processes that a nursery forks: whose they are, what they get, and what its death does to them."""

import asyncio
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pytest

from craft_easy_jobd import forking
from craft_easy_jobd.containment import adopt_orphans
from craft_easy_jobd.forking import Child, fork
from craft_easy_jobd.nursery import Nursery
from tests.jobd.test_pool import alive, crew, on_both_loops
from tests.support.waiting import wait_until

FORKED = "tests.jobd.forked"


pytestmark = pytest.mark.usefixtures("adopting")


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery({**os.environ, "SETTLEMENT_DB": "kept"})
    yield nursery
    nursery.close()


@asynccontextmanager
async def forked(nursery: Nursery, **options: Any) -> AsyncIterator[tuple[Child, dict[str, Any]]]:
    """A process and the facts that it told; it is gone afterwards."""
    reading, writing = os.pipe()
    try:
        child = await fork(nursery, FORKED, json.dumps({"tell": writing, **options}), [writing])
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as facts:
        told = json.loads(await asyncio.to_thread(facts.read))
    try:
        yield child, told
    finally:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()


def the_process(nursery: Nursery) -> int:
    [pid] = nursery.pids
    return pid


@on_both_loops
async def test_a_forked_process_is_a_child_of_the_supervisor_in_a_session_of_its_own() -> None:
    nursery = Nursery({**os.environ, "SETTLEMENT_DB": "kept"})
    async with forked(nursery, stay=True) as (child, facts):
        assert facts["pid"] == facts["session"] == child.pid
        assert facts["name"] == "jobd-forked"
        assert facts["parent"] == os.getpid()
        assert facts["mark"] == "kept"
        assert facts["library"]
        # The file that it got, and the folder that it lists.
        assert len(facts["files"]) == 2
        assert child.returncode is None
        assert psutil.Process(the_process(nursery)).children() == []
    assert child.returncode == -signal.SIGKILL
    nursery.close()


@on_both_loops
async def test_how_it_ended_is_told() -> None:
    nursery = Nursery(os.environ)
    async with forked(nursery, code=3) as (child, _):
        assert await child.wait() == 3
        assert child.returncode == 3
    async with forked(nursery, stay=True) as (child, _):
        os.kill(child.pid, signal.SIGSEGV)
        assert await child.wait() == -signal.SIGSEGV
    nursery.close()


async def test_files_come_under_the_numbers_that_they_have_here(nursery: Nursery) -> None:
    """Also where these are taken by others of them: the nursery gets them in an order of its own."""
    pipes = [os.pipe() for _ in range(4)]
    writing = [end for _, end in pipes]
    # The lowest numbers that are free in the nursery, the wrong way round.
    numbers = [9, 8, 7, 6]
    texts = {str(number): f"file {number}" for number in numbers[1:]}
    argument = json.dumps({"tell": numbers[0], "texts": texts})
    nursery.start()
    order = json.dumps([FORKED, argument, numbers]).encode()
    answer = await forking._ask(nursery, order, writing)
    child = Child(int(answer))
    assert await child.wait() == 0
    for end in writing:
        os.close(end)
    read = []
    for end, _ in pipes:
        with os.fdopen(end) as file:
            read.append(file.read())
    assert json.loads(read[0])["pid"] == child.pid
    assert read[1:] == ["file 8", "file 7", "file 6"]


async def test_a_dead_nursery_is_replaced_and_what_it_forked_goes_on(
    nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with forked(nursery, stay=True) as (first, _):
        before = the_process(nursery)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not alive(before))
        async with forked(nursery) as (second, _):
            assert await second.wait() == 0
        assert the_process(nursery) != before
        assert first.returncode is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not answer" in caplog.text


async def test_a_nursery_that_does_not_answer_is_replaced(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    nursery.start()
    before = the_process(nursery)
    os.kill(before, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(forking, "_ANSWER_SECONDS", 0.05)
        assert await forking._ask(nursery, b"[]", []) == b""
    async with forked(nursery) as (child, _):
        assert await child.wait() == 0
    assert not alive(before)


async def test_who_is_cancelled_while_it_waits_leaves_no_answer_for_the_next(nursery: Nursery) -> None:
    nursery.start()
    os.kill(the_process(nursery), signal.SIGSTOP)
    asking = asyncio.create_task(fork(nursery, FORKED, "{}", []))
    await asyncio.wait([asking], timeout=0.05)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    async with forked(nursery, code=4) as (child, _):
        assert await child.wait() == 4


async def test_a_nursery_that_cannot_fork_says_why_and_goes_on(nursery: Nursery) -> None:
    async with forked(nursery) as (child, _):
        await child.wait()
    pid = the_process(nursery)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 100))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        await fork(nursery, FORKED, "{}", [])
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, 100))
    async with forked(nursery) as (child, _):
        await child.wait()
    assert the_process(nursery) == pid


async def test_a_nursery_that_cannot_start_is_no_hang(capfd: pytest.CaptureFixture[str]) -> None:
    nursery = Nursery({"PYTHONHOME": "/nowhere"})
    with pytest.raises(OSError, match="the process that workers are forked from dies"):
        await fork(nursery, FORKED, "{}", [])
    nursery.close()
    capfd.readouterr()


async def test_workers_do_not_notice_that_the_nursery_died() -> None:
    async with crew() as c:
        first = await c.worker()
        nursery = c.pool._nursery
        c.start(first, "sleep", "before", seconds=0.1)
        os.kill(the_process(nursery), signal.SIGKILL)
        assert (await c.outcome("before")).kind == "returned"
        second = await c.worker()
        assert (await c.run(second, "echo", "after")).kind == "returned"
        # Neither is it swept with what a dead worker left.
        first.kill()
        await c.end_of(first)
        assert alive(the_process(nursery))


SUPERVISOR = f"""
import asyncio, os, sys
from craft_easy_jobd.containment import adopt_orphans
from craft_easy_jobd.forking import fork
from craft_easy_jobd.nursery import Nursery

async def main():
    nursery = Nursery(os.environ)
    child = await fork(nursery, "{FORKED}", '{{"tell": 9, "stay": true}}', [os.dup2(2, 9)])
    print(child.pid, *nursery.pids, flush=True)
    await asyncio.Event().wait()

adopt_orphans()
asyncio.run(main())
"""


def test_all_die_with_their_supervisor() -> None:
    adopt_orphans(adopt=False)
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as own:
        assert own.stdout is not None
        pids = [int(pid) for pid in own.stdout.readline().split()]
        assert [alive(pid) for pid in pids] == [True, True]
        own.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_nursery_ends_when_its_parent_is_not_the_one_that_started_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "craft_easy_jobs.nursery", str(theirs.fileno()), "1"]
    with ours, theirs:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], check=False, timeout=30)
    assert ended.returncode == 69


async def test_a_process_that_cannot_be_seen_to_its_end_is_killed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    pids: list[int] = []
    reading, writing = os.pipe()
    monkeypatch.setattr(os, "pidfd_open", fails)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        await fork(nursery, FORKED, json.dumps({"tell": writing, "stay": True}), [writing])
    os.close(reading)
    os.close(writing)
    ended = wait_until(lambda: os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG))
    assert ended is not None
    assert ended.si_status == signal.SIGKILL


@pytest.mark.parametrize("answered", [False, True])
def test_a_nursery_whose_supervisor_is_gone_before_it_read_the_answer_ends_in_silence(answered: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "craft_easy_jobs.nursery", str(theirs.fileno()), str(os.getpid())]
    with theirs:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[theirs.fileno()]
        )
    with ours:
        order = [FORKED, json.dumps({"tell": writing}), [writing]]
        socket.send_fds(ours, [json.dumps(order).encode()], [writing])
        if answered:
            assert select.select([ours], [], [], 30)[0]
    os.close(writing)
    with os.fdopen(reading) as facts:
        os.waitid(os.P_PID, json.loads(facts.read())["pid"], os.WEXITED)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, b"")
