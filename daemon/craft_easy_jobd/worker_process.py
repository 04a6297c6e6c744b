"""A worker process as the supervisor sees it: it is talked to, listened to, killed, and seen to its end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from craft_easy_jobd.accounting import Account, OomKill
from craft_easy_jobd.forking import Child
from craft_easy_jobd.probe import Blockage, Probe
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.wire import (
    BEAT_SECONDS,
    Beat,
    Catalogue,
    Entries,
    Link,
    Outcome,
    Quit,
    Tenants,
    ToSupervisor,
    ToWorker,
)

# A worker that closed its socket has so long to end by itself: atexit functions, threads of jobs.
EXIT_SECONDS = 5.0
# What SIGKILL does not end in this time hangs in the kernel; no run waits for it any longer.
KILL_SECONDS = 3.0
# Between two rounds of a sweep; the second when it hangs.
_ROUND_SECONDS = 0.002
_HANGING_SECONDS = 0.2
# The socket of a dead worker ends at once, unless a process elsewhere holds a copy.
_LAST_WORDS_SECONDS = 1.0


class WorkerEvents(Protocol):
    """Who is told what workers do. Called on the loop; must not block or raise."""

    def worker_ready(self, worker: "Worker", catalogue: Catalogue) -> None:
        """Its modules are imported; or, when `catalogue.error` says so, could not be, and it ends."""

    def worker_said(self, worker: "Worker", messages: list[Entries | Outcome]) -> None:
        """What one frame brought, in order; never empty."""

    def worker_stuck(self, worker: "Worker", problem: str) -> None:
        """SIGKILL does not end it, or what its jobs started; `worker_gone` comes when it has ended after all."""

    def worker_listed(self, worker: "Worker", tenants: Tenants) -> None:
        """It called the tenants callable, as it was asked to."""

    def worker_gone(self, worker: "Worker", returncode: int | None, problem: str) -> None:
        """It ended with all that its jobs started, and all that it said was told. Once for each worker, last of all.

        `problem` is a sentence without a full stop, empty after an orderly leave. `returncode` is None when even
        SIGKILL did not end it until the pool was closed.
        """


class Worker:
    """One worker process.

    Attributes:
        started: monotonic seconds.
        events: who is told what it does.
        generation: number of the one that it belongs to.
        ready: has imported the jobs; `code_version` says which.
        leaving: was told that no more attempts will come.
        killed: SIGKILL was sent on our side.
        stuck: SIGKILL has not ended all of it, see `remains`.
        hangs: what status says of it then.
        remains: processes that its jobs started and that were there when it was looked for them last.
        busy: attempts that it carries out, as it said last.
        beat_at: when its loop was known to turn last, monotonic seconds.
        blocked: why it does not turn, when it does not.
        probe: what can be seen of it even then.
        account: what it uses with all that its jobs started.
    """

    def __init__(
        self,
        name: str,
        isolation: Isolation,
        slots: int,
        process: Child,
        sock: socket.socket,
        probe: Probe,
        account: Account,
        events: WorkerEvents,
        sweep: "Callable[[Worker], Awaitable[list[int] | None]]",
        generation: int,
    ) -> None:
        self.name = name
        self.isolation: Isolation = isolation
        self.slots = slots
        self.generation = generation
        self.pid = process.pid
        self.started = time.monotonic()
        self.ready = False
        self.code_version: str | None = None
        self.leaving = False
        self.killed = False
        self.stuck = False
        self.hangs: str | None = None
        self.remains: list[int] = []
        self.busy = 0
        self.beat_at = self.started
        self.blocked: Blockage | None = None
        self.probe = probe
        self.account = account
        self.events = events
        self._sweep = sweep
        self._process = process
        self._problem = ""
        self._lag_seconds = 0.0
        self._ending = asyncio.Event()
        self._silent = asyncio.Event()
        self._link = Link(asyncio.get_running_loop(), sock, ToSupervisor, self._received, self._lost)

    @property
    def returncode(self) -> int | None:
        """As of subprocess: negative after a signal, None while it runs."""
        return self._process.returncode

    @property
    def lag_seconds(self) -> float:
        """How late its loop was for the last beat, or how long a beat is overdue: then its loop is blocked."""
        overdue = time.monotonic() - self.beat_at - BEAT_SECONDS if self.ready else 0.0
        return max(self._lag_seconds, overdue)

    @property
    def takes_attempts(self) -> bool:
        """Whether a further attempt would be carried out at once, if it has a free slot."""
        return self.ready and not (self.leaving or self.killed) and self.blocked is None

    def send(self, message: ToWorker) -> None:
        """Send with all else of this turn of the loop; dropped when the worker is gone."""
        self._link.send(message)

    def flush(self) -> None:
        """Send at once what was put so far."""
        self._link.flush()

    def leave(self) -> None:
        """Tell it that no more attempts will come: it ends after the last outcome."""
        if not self.leaving:
            self.leaving = True
            self.send(Quit())

    def kill(self) -> None:
        """Kill it with its process group; the rest follows in `gone`. Harmless when it is gone."""
        if self.returncode is None:
            self.killed = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._ending.set()

    def close(self) -> None:
        """Nobody attends to it any more; once."""
        self.kill()
        self.account.close()
        self.probe.close()

    async def gone(self) -> None:
        """Wait until it has ended, and kill what it leaves; when cancelled, kill it, and do not wait for what hangs."""
        end = asyncio.ensure_future(self._process.wait())
        end.add_done_callback(lambda _: self._ending.set())
        try:
            await self._ending.wait()
            self.account.close()
            await self._swept()
        except asyncio.CancelledError:
            self.kill()
            await _within(0.0 if self.stuck else KILL_SECONDS, self._swept)
            raise
        finally:
            await _within(_LAST_WORDS_SECONDS, self._silent.wait)
            self._link.close()
            end.cancel()

    @property
    def oom_kill(self) -> OomKill | None:
        """Why the kernel killed it for want of memory, if it did."""
        by_kernel = self.returncode == -signal.SIGKILL and not self.killed
        return self.account.oom_kill() if by_kernel else None

    @property
    def problem(self) -> str:
        """Why it is gone, see WorkerEvents."""
        code = self.returncode
        if self._problem:
            return self._problem
        if code is None:
            return f"SIGKILL does not end worker {self.name}: its process {self.pid} hangs in the kernel"
        if code < 0:
            why = ", by the kernel for want of memory" if self.oom_kill else ""
            return f"worker {self.name} was killed by {signal_name(-code)}{why}"
        return "" if code == 0 and self.leaving else f"worker {self.name} exited by itself with code {code}"

    async def _swept(self) -> None:
        """Sweep until the process has ended and nothing that its jobs started is left."""
        deadline = time.monotonic() + KILL_SECONDS
        # What it leaves moves to the supervisor at its end: a round that began before may see it in neither place.
        had_ended = self.returncode is not None
        while (found := await self._sweep(self)) is not None or not had_ended:
            had_ended = self.returncode is not None
            self.remains = found or []
            if (found is not None or not had_ended) and not self.stuck and time.monotonic() > deadline:
                self.stuck = True
                self.events.worker_stuck(self, self._hanging())
            await asyncio.sleep(_HANGING_SECONDS if self.stuck else _ROUND_SECONDS)

    def _hanging(self) -> str:
        if self.returncode is None:
            return self.problem
        pids = ", ".join(map(str, self.remains[:10]))
        return f"SIGKILL does not end what jobs of worker {self.name} started (pids {pids}): it hangs in the kernel"

    def _received(self, frame: list[ToSupervisor]) -> None:
        said: list[Entries | Outcome] = []
        for message in frame:
            if isinstance(message, Beat):
                self.beat_at = time.monotonic()
                self._lag_seconds = message.lag_seconds
                self.busy = message.busy
            elif isinstance(message, Catalogue):
                self._introduced(message)
            elif isinstance(message, Tenants):
                self.events.worker_listed(self, message)
            else:
                said.append(message)
        if said:
            self.events.worker_said(self, said)

    def _introduced(self, catalogue: Catalogue) -> None:
        self._problem = catalogue.error or ""
        self.code_version = catalogue.code_version
        self.ready = catalogue.error is None
        self.beat_at = time.monotonic()
        self.events.worker_ready(self, catalogue)

    def _lost(self, problem: str) -> None:
        """The link ended: mostly because the process does."""
        self._silent.set()
        if problem:
            self._problem = f"worker {self.name} sent what is no message: {problem}"
            self.kill()
        elif self.returncode is None:
            asyncio.get_running_loop().call_later(EXIT_SECONDS, self.kill)


async def _within(seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, but not for longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait()


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
