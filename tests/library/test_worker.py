"""The worker process by itself, and the link between it and the supervisor."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from craft_easy_jobs import wire
from craft_easy_jobs.wire import (
    Catalogue,
    Entries,
    Link,
    Outcome,
    Quit,
    Start,
    Stop,
    ToSupervisor,
    ToWorker,
    Unpacker,
    WorkerOptions,
)

JOBS = str(Path(__file__).parents[1] / "jobd" / "worker_jobs.py")
START = Start("r", 1, 1, "sleep", b"{}", None, "tenant", [])


@contextmanager
def worker() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    options = WorkerOptions(fd=theirs.fileno(), jobs=(JOBS,))
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "craft_easy_jobs.worker", msgspec.json.encode(options).decode()],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        ours.settimeout(30)
        with process:
            try:
                yield process, ours
            finally:
                process.kill()


def heard(sock: socket.socket, kind: type) -> Any:
    """The next message of this kind."""
    unpacker = Unpacker(ToSupervisor)
    while data := sock.recv(65536):
        for frame in unpacker.feed(data):
            for message in frame:
                if isinstance(message, kind):
                    return message
    raise AssertionError(f"the worker ended without {kind.__name__}")


@pytest.mark.parametrize("arguments", [[], ["--help"], ['{"fd": "3"}']])
def test_who_starts_it_by_hand_is_told_what_to_type(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "craft_easy_jobs.worker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("to run a job yourself: craft-easy-job run\n")
    assert "Traceback" not in done.stderr


def test_it_ends_when_the_supervisor_is_gone() -> None:
    with worker() as (process, sock):
        assert heard(sock, Catalogue).error is None
        sock.sendall(wire.pack([START]))
        heard(sock, Entries)
        sock.close()
        assert process.wait(10) == 69


def test_it_ends_when_the_supervisor_sends_garbage() -> None:
    with worker() as (process, sock):
        heard(sock, Catalogue)
        sock.sendall(b"\x00\x00\x00\x02\xc1\xc1")
        assert process.wait(10) == 69
        assert process.stderr is not None
        assert b"cannot understand the supervisor" in process.stderr.read()


def test_it_leaves_when_told_and_says_all_before() -> None:
    with worker() as (process, sock):
        heard(sock, Catalogue)
        sock.sendall(wire.pack([Start("r", 1, 1, "value", b'{"which": "large", "size": 3000000}', None, "tenant", [])]))
        assert sock.recv(1, socket.MSG_PEEK)  # it is saying it, but the socket does not hold it all
        sock.sendall(wire.pack([Quit()]))
        assert len(heard(sock, Outcome).result) == 3_000_002
        assert process.wait(10) == 0


# -- the link


class End:
    """One end of a link, with what it heard."""

    def __init__(self, sock: socket.socket, kind: object) -> None:
        self.frames: list[list[Any]] = []
        self.lost: list[str] = []
        self.changed = asyncio.Event()
        self.link = Link(asyncio.get_running_loop(), sock, kind, self._received, self._lost)

    def _received(self, frame: list[Any]) -> None:
        self.frames.append(frame)
        self.changed.set()

    def _lost(self, problem: str) -> None:
        self.lost.append(problem)
        self.changed.set()

    async def until_frames(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.frames) < count and not self.lost:
                self.changed.clear()
                await self.changed.wait()

    async def until_lost(self) -> str:
        async with asyncio.timeout(30):
            while not self.lost:
                self.changed.clear()
                await self.changed.wait()
        return self.lost[0]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


def test_what_is_said_in_one_turn_leaves_in_one_frame(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        one, other = End(ours, ToSupervisor), End(theirs, ToWorker)
        one.link.send(START)
        one.link.send(Stop("r", 1))
        await other.until_frames(1)
        one.link.send(Quit())
        await other.until_frames(2)
        assert other.frames == [[START, Stop("r", 1)], [Quit()]]
        one.link.close()
        one.link.close()
        assert await other.until_lost() == ""
        one.link.send(Quit())
        other.link.send(Quit())

    runner.run(scenario())


def test_more_than_the_socket_holds_arrives_whole_and_in_order(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        one, other = End(ours, ToSupervisor), End(theirs, ToWorker)
        large = [Start("r", token, 1, "echo", bytes(3_000_000), None, "tenant", []) for token in range(3)]
        one.link.send(large[0])
        one.link.flush()
        one.link.send(large[1])
        one.link.send(large[2])
        await other.until_frames(2)
        assert other.frames == [[large[0]], large[1:]]
        one.link.close()
        assert await other.until_lost() == ""

    runner.run(scenario())


def test_the_last_words_of_an_end_that_is_gone_are_heard(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        one = End(ours, ToSupervisor)
        theirs.sendall(wire.pack([Outcome("r", 1, "returned")]))
        theirs.close()
        one.link.send(Quit())
        one.link.flush()
        assert await one.until_lost() == ""
        assert one.frames == [[Outcome("r", 1, "returned")]]

    runner.run(scenario())


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x91\x01"])
def test_garbage_ends_the_link_and_says_why(runner: asyncio.Runner, garbage: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        one = End(ours, ToSupervisor)
        with theirs:
            theirs.sendall(garbage)
            assert await one.until_lost()
        assert len(one.lost) == 1

    runner.run(scenario())


def test_messages_too_large_for_one_frame_go_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 100)
    stops = [Stop("r" * 20, token) for token in range(9)]
    frames = Unpacker(ToWorker).feed(wire.pack(stops))
    assert len(frames) > 1
    assert [message for frame in frames for message in frame] == stops
