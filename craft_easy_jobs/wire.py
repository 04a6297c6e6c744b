"""What supervisor and worker say to each other, and how it is framed.

A frame is a 4-byte big-endian length and a msgpack array of messages: all that one side has to say in one turn of
its loop goes out in one frame. Values that are already JSON (params, results, log entries) travel as bytes and are
never decoded on the way.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.model import Scope

MAX_FRAME_BYTES = 256 * 1024 * 1024
_HEADER = 4


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


class Catalogue(msgspec.Struct, frozen=True, array_like=True, tag="catalogue"):
    """Worker → supervisor, first of all: the jobs and chains it can run, or why its modules cannot be imported.

    `chains`: name → the steps' job names, for checks.
    """

    jobs: list[JobOptions]
    chains: dict[str, list[str]] = {}
    code_version: str | None = None
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
    """Worker → supervisor, about once a second: how late its loop is, and how many attempts it carries out."""

    lag_seconds: float
    busy: int


ToWorker: TypeAlias = Start | Stop | Cancel | Quit
ToSupervisor: TypeAlias = Catalogue | Entries | Outcome | Beat

_encoder = msgspec.msgpack.Encoder()


def pack(messages: Sequence[ToWorker] | Sequence[ToSupervisor]) -> bytes:
    """One frame that holds the messages in their order."""
    body = _encoder.encode(messages)
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
