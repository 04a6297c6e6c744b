"""What supervisor and worker say to each other, and how it is framed.

A frame is a 4-byte big-endian length and a msgpack array of messages: all that one side has to say in one turn of
its loop goes out in one frame. Values that are already JSON (params, results, log entries) travel as bytes and are
never decoded on the way.
"""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from craft_easy_jobs.chaining import Chain
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.scopes import Scope
from craft_easy_jobs.tenants import Tenant

if TYPE_CHECKING:
    import asyncio

MAX_FRAME_BYTES = 256 * 1024 * 1024
BEAT_SECONDS = 0.25
_HEADER = 4
_READ_BYTES = 256 * 1024


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker is started with, as JSON in its one argument: a parser of flags would cost 10 ms of each start.

    Attributes:
        fd: socket to the supervisor.
        jobs: modules that register jobs.
        slots: attempts side by side.
        tenants: `module:name` of a callable that lists them.
        max_log_bytes, max_result_bytes, max_log_rate: of one attempt, see Bounds.
        board: file for the mark of the attempt whose turn it is; -1: none.
        stack: file for the loop's stack, when it is asked for by signal; -1: none.
        cgroup: folder of the cgroup to enter.
        credentials: folder of the files that `ctx.credential` reads.
    """

    fd: int
    jobs: tuple[str, ...] = ()
    slots: int = 1
    tenants: str | None = None
    max_log_bytes: int = 16 * 1024 * 1024
    max_result_bytes: int = 64 * 1024 * 1024
    max_log_rate: int = 1000
    board: int = -1
    stack: int = -1
    cgroup: str | None = None
    credentials: str | None = None


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Supervisor → worker: carry out one attempt. `token` is the lease's and comes back with all that is said of it."""

    run_id: str
    token: int
    attempt: int
    job: str
    params: bytes
    tenant_id: str | None
    scope: Scope
    sub_tenant_ids: list[str]
    validate: bool = False
    upstream: bytes = b"{}"


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Supervisor → worker: `request_stop()` on the run's context."""

    run_id: str
    token: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Supervisor → worker: `request_stop()` and `task.cancel()`."""

    run_id: str
    token: int


class Quit(msgspec.Struct, frozen=True, array_like=True, tag="quit"):
    """Supervisor → worker: no more attempts will come; exit when the last has ended."""


class AskTenants(msgspec.Struct, frozen=True, array_like=True, tag="ask_tenants"):
    """Supervisor → worker: call the tenants callable again, and answer with Tenants."""


class Tenants(msgspec.Struct, frozen=True, array_like=True, tag="tenants"):
    """Worker → supervisor: what the tenants callable returned, or why it is no directory."""

    tenants: list[Tenant] = []
    error: str | None = None


class Catalogue(msgspec.Struct, frozen=True, array_like=True, tag="catalogue"):
    """Worker → supervisor, first of all: the jobs and chains it can run, or why its modules cannot be imported.

    `tenants`: what the callable of the settings returned, None when there is none.
    """

    jobs: list[JobOptions]
    chains: dict[str, Chain] = {}
    code_version: str | None = None
    tenants: list[Tenant] | None = None
    error: str | None = None


class Entries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """Worker → supervisor: log entries of one attempt, in order.

    `entries`: JSON objects joined by commas, without brackets, so that chunks join by a comma too. `count` of them,
    `warnings` of which have the level warning or error; `progress`: the last progress entry's message and percentage.
    """

    run_id: str
    token: int
    entries: bytes
    count: int
    warnings: int = 0
    progress: tuple[str, int | None] | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """Worker → supervisor: how one attempt ended. All its entries were sent before.

    `kind`: `returned` (with `result`, JSON), `raised` (with `error` and `reason`), `cancelled` (the task's
    CancelledError came out). `reason` of `raised`: exception, unknown_job, invalid_params, result_invalid.
    """

    run_id: str
    token: int
    kind: Literal["returned", "raised", "cancelled"]
    result: bytes = b"null"
    error: str | None = None
    reason: str | None = None
    obeyed_stop: bool = False
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """Worker → supervisor, every BEAT_SECONDS: how late its loop was for it, and its attempts."""

    lag_seconds: float
    busy: int


ToWorker: TypeAlias = Start | Stop | Cancel | Quit | AskTenants
ToSupervisor: TypeAlias = Catalogue | Entries | Outcome | Beat | Tenants

_encoder = msgspec.msgpack.Encoder()


def pack(messages: Sequence[ToWorker] | Sequence[ToSupervisor]) -> bytes:
    """One frame that holds the messages in their order; several when they are too much for one."""
    body = _encoder.encode(messages)
    if len(body) > MAX_FRAME_BYTES and len(messages) > 1:
        half = len(messages) // 2
        return pack(messages[:half]) + pack(messages[half:])
    return len(body).to_bytes(_HEADER, "big") + body


class Unpacker:
    """Turns received bytes back into messages; frames may arrive in any pieces."""

    def __init__(self, kind: type[ToWorker] | type[ToSupervisor] | object) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[ToWorker] | list[ToSupervisor]]:
        """The frames that are complete now.

        Raises:
            ValueError: the peer sent a frame over MAX_FRAME_BYTES or one that is no message.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= _HEADER:
            size = int.from_bytes(self._buffer[start : start + _HEADER], "big")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {size} bytes")
            if len(self._buffer) - start - _HEADER < size:
                break
            start += _HEADER
            frames.append(self._decoder.decode(memoryview(self._buffer)[start : start + size]))
            start += size
        del self._buffer[:start]
        return frames


class Link:
    """One end of the socket between supervisor and worker, on an asyncio loop.

    What is sent in one turn of the loop leaves in one frame. `received` is called with each frame that comes in, a
    list of messages; `lost` once, when the other end is gone (with an empty text) or sends what is no frame.

    It works on the socket itself, not on a transport, so that `flush` and `receive` act at once: a job that does not
    let the worker's loop turn calls them through its context.
    """

    def __init__(
        self,
        loop: "asyncio.AbstractEventLoop",
        sock: socket.socket,
        kind: object,
        received: Callable[[list[Any]], None],
        lost: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._unpacker = Unpacker(kind)
        self._received = received
        self._lost = lost
        self._outbox: list[Any] = []
        self._unsent = memoryview(b"")
        self._closed = False
        sock.setblocking(False)
        loop.add_reader(sock, self.receive)

    def send(self, message: ToWorker | ToSupervisor) -> None:
        """Put a message into the next frame; dropped when the link is closed."""
        if self._closed:
            return
        if not self._outbox:
            self._loop.call_soon(self.flush)
        self._outbox.append(message)

    def flush(self) -> None:
        """Send what was put so far, as far as the socket takes it; the rest follows when it can."""
        if self._outbox and not self._unsent and not self._closed:
            self._unsent = memoryview(pack(self._outbox))
            self._outbox.clear()
            self._write()
            if self._unsent:
                self._loop.add_writer(self._sock, self._continue)

    def receive(self) -> None:
        """Take in what has arrived."""
        if self._closed:
            return
        try:
            data = self._sock.recv(_READ_BYTES)
            frames = self._unpacker.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lose("")
        except ValueError as error:
            self._lose(str(error))
        else:
            for frame in frames:
                self._received(frame)
            if not data:
                self._lose("")

    def close(self) -> None:
        """Drop what was not sent; twice is harmless."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def finish(self) -> None:
        """Send all that was put, however long the other end takes to read it, then close."""
        if not self._closed:
            self._sock.setblocking(True)
            with suppress(OSError):
                self._sock.sendall(bytes(self._unsent) + (pack(self._outbox) if self._outbox else b""))
            self.close()

    def _continue(self) -> None:
        self._write()
        if not self._unsent:
            self._loop.remove_writer(self._sock)
            self.flush()

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # The other end is gone; its last words may still be unread, so that only `receive` ends the link.
            self._unsent = memoryview(b"")

    def _lose(self, problem: str) -> None:
        if not self._closed:
            # Told first: a worker that is killed for it must not end by itself at the sight of a closed socket.
            self._lost(problem)
            self.close()
