"""Worker processes as the supervisor sees them: start, talk, kill. Which run goes where is decided elsewhere."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Protocol

from craft_easy_jobd.probe import Blockage, Probe
from craft_easy_jobd.settings import Settings
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.wire import BEAT_SECONDS, Beat, Catalogue, Entries, Link, Outcome, Quit, ToSupervisor, ToWorker

# A worker that closed its socket has so long to end by itself: atexit functions, threads of jobs.
EXIT_SECONDS = 5.0
# A process that SIGKILL does not end in this time hangs in the kernel; nobody waits for it any longer.
KILL_SECONDS = 5.0
# The socket of a dead worker ends at once, unless a process that left its group holds a copy.
_LAST_WORDS_SECONDS = 1.0

_NAMES: dict[Isolation, str] = {"shared": "w", "process": "d"}

# What systemd gave to the supervisor is for the supervisor alone.
_NOT_FOR_WORKERS = {
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"),
    *("LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID"),
}


class WorkerEvents(Protocol):
    """Who is told what workers do. Called on the loop; must not block or raise."""

    def worker_ready(self, worker: "Worker", catalogue: Catalogue) -> None:
        """Its modules are imported; or, when `catalogue.error` says so, could not be, and it ends."""

    def worker_said(self, worker: "Worker", messages: list[Entries | Outcome]) -> None:
        """What one frame brought, in order; never empty."""

    def worker_gone(self, worker: "Worker", returncode: int | None, problem: str) -> None:
        """Its process ended, and all that it said was told before. Once for each worker, last of all.

        `problem` is a sentence without a full stop, empty after an orderly leave. `returncode` is None when even
        SIGKILL did not end it.
        """


class Worker:
    """One worker process.

    Attributes:
        started: monotonic seconds.
        ready: can take attempts; false while it imports the jobs.
        leaving: was told that no more attempts will come.
        killed: SIGKILL was sent on our side.
        busy: attempts that it carries out, as it said last.
        beat_at: when its loop was known to turn last, monotonic seconds.
        blocked: why it does not turn, when it does not.
        probe: what can be seen of it even then.
    """

    def __init__(
        self,
        name: str,
        isolation: Isolation,
        slots: int,
        process: asyncio.subprocess.Process,
        sock: socket.socket,
        probe: Probe,
        events: WorkerEvents,
    ) -> None:
        self.name = name
        self.isolation: Isolation = isolation
        self.slots = slots
        self.pid = process.pid
        self.started = time.monotonic()
        self.ready = False
        self.leaving = False
        self.killed = False
        self.busy = 0
        self.beat_at = self.started
        self.blocked: Blockage | None = None
        self.probe = probe
        self._events = events
        self._process = process
        self._problem = ""
        self._lag_seconds = 0.0
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

    def send(self, message: ToWorker) -> None:
        """Send with all else of this turn of the loop; dropped when the worker is gone."""
        self._link.send(message)

    def leave(self) -> None:
        """Tell it that no more attempts will come: it ends after the last outcome."""
        if not self.leaving:
            self.leaving = True
            self.send(Quit())

    def kill(self) -> None:
        """Kill it with its process group; harmless when it is gone."""
        if self.returncode is None:
            self.killed = True
            self._kill_group()

    def close(self) -> None:
        """Nobody attends to it any more; once."""
        self.kill()
        self.probe.close()

    async def gone(self) -> None:
        """Wait until the process has ended; when cancelled, kill it. Either way nothing of its group is left."""
        try:
            await self._process.wait()
        finally:
            await self._bury()

    @property
    def problem(self) -> str:
        """Why it is gone, see WorkerEvents."""
        code = self.returncode
        if self._problem:
            return self._problem
        if code is None:
            return f"worker {self.name} (pid {self.pid}) hangs in the kernel: SIGKILL did not end it"
        if code < 0:
            return f"worker {self.name} was killed by {_signal_name(-code)}"
        return "" if code == 0 and self.leaving else f"worker {self.name} exited by itself with code {code}"

    async def _bury(self) -> None:
        # Also after its end: processes that the jobs started may be left in the group.
        self.kill()
        self._kill_group()
        await _within(KILL_SECONDS, self._process.wait)
        await _within(_LAST_WORDS_SECONDS, self._silent.wait)
        self._link.close()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _received(self, frame: list[Catalogue | Beat | Entries | Outcome]) -> None:
        said: list[Entries | Outcome] = []
        for message in frame:
            if isinstance(message, Beat):
                self.beat_at = time.monotonic()
                self._lag_seconds = message.lag_seconds
                self.busy = message.busy
            elif isinstance(message, Catalogue):
                self._introduced(message)
            else:
                said.append(message)
        if said:
            self._events.worker_said(self, said)

    def _introduced(self, catalogue: Catalogue) -> None:
        self._problem = catalogue.error or ""
        self.ready = catalogue.error is None
        self.beat_at = time.monotonic()
        self._events.worker_ready(self, catalogue)

    def _lost(self, problem: str) -> None:
        """The link ended: mostly because the process does."""
        self._silent.set()
        if problem:
            self._problem = f"worker {self.name} sent what is no message: {problem}"
            self.kill()
        elif self.returncode is None:
            asyncio.get_running_loop().call_later(EXIT_SECONDS, self.kill)


class Pool:
    """The worker processes by name, from their start until they are gone.

    Each is attended by one task in `tasks`, which must be a TaskGroup of the loop's main thread: the kernel kills a
    worker when the thread that started it ends.
    """

    def __init__(self, settings: Settings, events: WorkerEvents, tasks: asyncio.TaskGroup) -> None:
        self.workers: dict[str, Worker] = {}
        self._settings = settings
        self._events = events
        self._tasks = tasks
        self._attending: set[asyncio.Task[None]] = set()
        self._started: Counter[Isolation] = Counter()
        self._closing = False

    async def start_worker(self, isolation: Isolation) -> Worker:
        """Start a worker; when it returns the process runs, but is not ready yet.

        Raises:
            OSError: no process can be started now.
        """
        self._started[isolation] += 1
        name = f"{_NAMES[isolation]}{self._started[isolation]}"
        slots = self._settings.slots if isolation == "shared" else 1
        with ExitStack() as undo:
            probe = Probe()
            undo.callback(probe.close)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                process = await self._spawn(theirs.fileno(), probe, slots)
            undo.pop_all()
        worker = self.workers[name] = Worker(name, isolation, slots, process, ours, probe, self._events)
        task = self._tasks.create_task(self._attend(worker), name=f"worker {name}")
        self._attending.add(task)
        task.add_done_callback(self._attending.discard)
        # A task that is cancelled before its first step attends to nothing.
        task.add_done_callback(lambda _: worker.close())
        if self._closing:
            worker.kill()
        return worker

    async def close(self, *, grace: float) -> None:
        """Let all workers leave, and kill those that have not after `grace` seconds; never hangs."""
        self._closing = True
        for worker in self.workers.values():
            worker.leave()
        if self._attending:
            await asyncio.wait(self._attending, timeout=grace)
        for task in self._attending:
            task.cancel()
        if self._attending:
            await asyncio.wait(self._attending)

    async def _spawn(self, fd: int, probe: Probe, slots: int) -> asyncio.subprocess.Process:
        modules = [f"--jobs={module}" for module in self._settings.jobs]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "craft_easy_jobs.worker"),
            *(f"--fd={fd}", f"--parent={os.getpid()}", f"--slots={slots}", *modules),
            *(f"--board={probe.board}", f"--stack={probe.stack}"),
            stdin=asyncio.subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS},
            pass_fds=(fd, probe.board, probe.stack),
            start_new_session=True,
        )

    async def _attend(self, worker: Worker) -> None:
        try:
            await worker.gone()
        except asyncio.CancelledError:
            # Only the daemon's end cancels this: nobody is to start another one in its place.
            worker.leaving = True
            raise
        finally:
            del self.workers[worker.name]
            self._events.worker_gone(worker, worker.returncode, worker.problem)


async def _within(seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Wait, but not for longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
