"""What a worker shows without saying it: the attempt whose step it carries out now, and its stack on a signal.

The worker writes a mark into memory that it shares with the supervisor, before each step of a task that belongs to an
attempt. It can be read at any time, also while C code holds the interpreter lock and the worker can say nothing.
"""

import asyncio
import faulthandler
import mmap
import os
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple, TypeVar

# A real-time signal (SIGRTMIN + 3), because jobs and their libraries have uses of their own for SIGUSR1 and SIGUSR2.
STACK_SIGNAL = 37
MARK_BYTES = 144

_TOKEN_BYTES = 8
_NOBODY = bytes(MARK_BYTES)

T = TypeVar("T")

_mark: ContextVar[bytes | None] = ContextVar("craft_easy_jobs_mark", default=None)


class Mark(NamedTuple):
    """One attempt, as `Start` named it."""

    run_id: str
    token: int

    def pack(self) -> bytes:
        return (self.token.to_bytes(_TOKEN_BYTES, "big") + self.run_id.encode()).ljust(MARK_BYTES, b"\0")


def read_mark(data: bytes) -> Mark | None:
    """The attempt whose step is being carried out; None when no step of any is."""
    run_id = data[_TOKEN_BYTES:].rstrip(b"\0")
    return Mark(run_id.decode(errors="replace"), int.from_bytes(data[:_TOKEN_BYTES], "big")) if run_id else None


class Board:
    """The worker's side of the shared memory. `fd`: a file of MARK_BYTES, closed here; -1 when nobody shares it.

    `mark` is what `memory` holds; whoever puts up another one puts this one back.
    """

    def __init__(self, fd: int = -1) -> None:
        self.memory = mmap.mmap(fd, MARK_BYTES)
        self.mark = _NOBODY
        if fd != -1:
            # The memory stays mapped: a job that closes all file descriptors does it no harm.
            os.close(fd)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the tasks that attempts start marked like the attempts themselves."""
        loop.set_task_factory(self._create_task)  # type: ignore[arg-type]

    def marked(self, coroutine: Coroutine[Any, Any, T], mark: Mark) -> tuple[Coroutine[Any, Any, T], Context]:
        """The coroutine as it is to be run, and the context for its task, from which its own tasks inherit."""
        packed = mark.pack()
        context = copy_context()
        context.run(_mark.set, packed)
        return _Marked(self, coroutine, packed), context

    def _create_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], **options: Any
    ) -> asyncio.Task[T]:
        mark = _mark.get()
        if mark is not None and asyncio.iscoroutine(coroutine):
            coroutine = _Marked(self, coroutine, mark)
        return asyncio.Task(coroutine, loop=loop, **options)


class _Marked(Coroutine[Any, Any, T]):
    """A coroutine that puts up its attempt's mark for the time of each step; 0.1 µs a step."""

    __slots__ = ("_board", "_coroutine", "_mark")

    def __init__(self, board: Board, coroutine: Coroutine[Any, Any, T], mark: bytes) -> None:
        self._board = board
        self._coroutine = coroutine
        self._mark = mark

    def send(self, value: Any) -> Any:
        board = self._board
        before = board.mark
        board.memory[:] = board.mark = self._mark
        try:
            return self._coroutine.send(value)
        finally:
            board.memory[:] = board.mark = before

    def throw(self, *error: Any) -> Any:
        board = self._board
        before = board.mark
        board.memory[:] = board.mark = self._mark
        try:
            return self._coroutine.throw(*error)
        finally:
            board.memory[:] = board.mark = before

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        """Whoever looks into a task finds the frames and names of its coroutine."""
        return getattr(self._coroutine, name)


def show_stack_on_signal(fd: int) -> None:
    """Have STACK_SIGNAL write the stack of the loop's thread into the file; it works without the interpreter lock."""
    # One thread only: the others may be running, and must not be looked at then.
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=False, chain=False)
