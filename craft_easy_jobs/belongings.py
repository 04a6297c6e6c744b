"""What an attempt started and may leave behind when it is cut: calls in threads, processes. Linux only.

A worker that is killed takes all of it along; this is for attempts that obey a cut, beside which others go on. What
starts a process is told apart by the context that it runs in, which asyncio and `to_thread` hand on.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

_POLL_SECONDS = 0.02
_FORGET_EVERY = 512
_TICKS = os.sysconf("SC_CLK_TCK")
# All children that were started here, with the attempt that did; any other child is an orphan that came to us.
_noted: dict[int, "Belongings | None"] = {}
# The children of the thread that is about to fork; it holds the interpreter lock until it has.
_before: list[int] = []


class Belongings:
    """The calls and processes that one attempt started."""

    def __init__(self) -> None:
        self.calls: set[Future[Any]] = set()
        self.pids: set[int] = set()
        self._young: set[int] = set()
        self._started = time.clock_gettime(time.CLOCK_BOOTTIME)

    def own(self) -> None:
        """From now on, what this context starts belongs to the attempt."""
        _owner.set(self)

    async def end(self) -> None:
        """Kill the processes, and wait until they are gone and all calls have returned; for ever if they do not."""
        while self._left():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_POLL_SECONDS)

    def _left(self) -> bool:
        if not self.pids:
            return bool(self.calls)
        unknown = orphans()
        own = {pid for pid in self.pids if _noted.get(pid) is self and _born(pid) is not None}
        young = {pid for pid in unknown if (born := _born(pid)) is not None and born >= self._started}
        _kill(own)
        if not any(owner not in (self, None) for owner in _noted.values()):
            # Else it may be a neighbour's: it stays, and this process will be killed with all that is below it.
            # One that was there the last time too: a thread may have started it, and not noted it yet.
            _kill(young & self._young)
        self._young = young
        return bool(self.calls or own or young)


class Threads(ThreadPoolExecutor):
    """The loop's executor; knows whose calls it carries out."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call = super().submit(fn, *args, **kwargs)
        if owner := _owner.get():
            owner.calls.add(call)
            call.add_done_callback(owner.calls.discard)
        return call


def take_note() -> None:
    """Note every process that attempts start from now on."""
    os.register_at_fork(before=_forking, after_in_parent=_forked)
    import _posixsubprocess

    for module, name in ((subprocess, "_fork_exec"), (_posixsubprocess, "fork_exec"), (os, "posix_spawn")):
        if start := getattr(module, name, None):
            setattr(module, name, _noting(start))


def orphans() -> set[int]:
    """The children that were not started here; forgets what was noted of those that are gone."""
    noted = set(_noted)
    children = set(children_of(os.getpid()))
    for pid in noted - children:
        _noted.pop(pid, None)
    return children - noted


def children_of(pid: int) -> list[int]:
    """Of all its threads; none when it is gone."""
    return list(_children_of(pid))


def _children_of(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                yield from map(int, file.read().split())


_owner: ContextVar[Belongings | None] = ContextVar("belongings", default=None)


def _noting(start: Callable[..., int]) -> Callable[..., int]:
    def noted(*args: Any, **kwargs: Any) -> int:
        pid = start(*args, **kwargs)
        _note(pid)
        return pid

    return noted


def _forking() -> None:
    global _before
    _before = _own_children()


def _forked() -> None:
    """os.fork, and the loop's own subprocesses: the child of this thread that was not there before is the one.

    Orphans may come to us just then; they are mostly of another session.
    """
    new = [pid for pid in _own_children() if pid not in _before]
    ours = [pid for pid in new if _session(pid) == os.getsid(0)]
    for pid in (ours or new)[:1]:
        _note(pid)


def _own_children() -> list[int]:
    """Of this thread."""
    with suppress(OSError), open("/proc/thread-self/children", "rb") as file:
        return list(map(int, file.read().split()))
    return []


def _session(pid: int) -> int | None:
    with suppress(OSError):
        return os.getsid(pid)
    return None


def _note(pid: int) -> None:
    owner = _noted[pid] = _owner.get()
    if owner:
        owner.pids.add(pid)
    if len(_noted) % _FORGET_EVERY == 0:
        orphans()


def _born(pid: int) -> float | None:
    """Seconds since the machine started, rounded up to a tick; None when it ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[19]) + 1) / _TICKS


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        _kill(children_of(pid))
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
