"""The worker processes: each is started, attended until it is gone, and swept. Which run goes where: see workforce."""

import asyncio
import os
import socket
from collections import Counter
from contextlib import ExitStack

import msgspec

from craft_easy_jobd.containment import Containment
from craft_easy_jobd.forking import Child, fork
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.probe import Probe
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.worker_process import Worker, WorkerEvents
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.wire import WorkerOptions

_NAMES: dict[Isolation, str] = {"shared": "w", "process": "d"}


class Pool:
    """The worker processes by name, from their start until they are gone.

    Each is attended by one task in `tasks`, which must be a TaskGroup of the loop's main thread: the kernel kills a
    worker when that thread ends.
    """

    def __init__(self, tasks: asyncio.TaskGroup, containment: Containment, nursery: Nursery) -> None:
        self.workers: dict[str, Worker] = {}
        self._tasks = tasks
        self._containment = containment
        self._nursery = nursery
        # A process that is being started is no worker yet, and must not be swept as if it were left by one.
        self._starting = asyncio.Lock()
        self._attending: set[asyncio.Task[None]] = set()
        self._started: Counter[Isolation] = Counter()
        self._helpers: list[Child] = []
        self._closing = False

    async def start_worker(
        self, isolation: Isolation, settings: Settings, events: WorkerEvents, *, generation: int = 1
    ) -> Worker:
        """Start a worker with these settings; when it returns the process runs, but is not ready yet.

        Raises:
            OSError: no process can be started now.
        """
        self._started[isolation] += 1
        name = f"{_NAMES[isolation]}{self._started[isolation]}"
        slots = settings.slots if isolation == "shared" else 1
        with ExitStack() as undo:
            probe = Probe()
            undo.callback(probe.close)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                async with self._starting:
                    process = await self._spawn(name, theirs.fileno(), probe, slots, settings)
                    account = self._containment.account(name, process.pid)
                    worker = Worker(
                        name, isolation, slots, process, ours, probe, account, events, self._sweep, generation
                    )
                    self.workers[name] = worker
            undo.pop_all()
        task = self._tasks.create_task(self._attend(worker), name=f"worker {name}")
        self._attending.add(task)
        task.add_done_callback(self._attending.discard)
        # A task that is cancelled before its first step attends to nothing.
        task.add_done_callback(lambda _: worker.close())
        if self._closing:
            worker.kill()
        return worker

    async def start_helper(self, module: str, options: msgspec.Struct, fd: int) -> Child:
        """Start a process of the daemon's own, which runs no jobs; whoever asks for it sees to its end.

        Raises:
            OSError: no process can be started now.
        """
        async with self._starting:
            helper = await self._fork(module, options, fd)
            self._helpers = [each for each in (*self._helpers, helper) if each.returncode is None]
        return helper

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

    async def _spawn(self, name: str, fd: int, probe: Probe, slots: int, settings: Settings) -> Child:
        options = WorkerOptions(
            fd=fd,
            jobs=settings.jobs,
            slots=slots,
            tenants=settings.tenants if settings.tenants and ":" in settings.tenants else None,
            max_log_bytes=settings.max_log_bytes,
            max_result_bytes=settings.max_result_bytes,
            max_log_rate=settings.max_log_rate,
            board=probe.board,
            stack=probe.stack,
            cgroup=self._containment.cgroup(name),
            credentials=_absolute(settings.credentials or os.environ.get("CREDENTIALS_DIRECTORY")),
        )
        return await self._fork("craft_easy_jobs.worker", options, fd, probe.board, probe.stack)

    async def _fork(self, module: str, options: msgspec.Struct, *fds: int) -> Child:
        return await fork(self._nursery, module, msgspec.json.encode(options).decode(), fds)

    async def _sweep(self, worker: Worker) -> list[int] | None:
        async with self._starting:
            spared = {pid for each in self.workers.values() for pid in _untouched(each, worker)}
            spared |= self._nursery.pids
            spared.update(helper.pid for helper in self._helpers if helper.returncode is None)
            pid = worker.pid if worker.returncode is None else None
            return await asyncio.to_thread(self._containment.sweep, worker.name, pid, spared)

    async def _attend(self, worker: Worker) -> None:
        try:
            await worker.gone()
        except asyncio.CancelledError:
            # Only the daemon's end cancels this: nobody is to start another one in its place.
            worker.leaving = True
            raise
        finally:
            del self.workers[worker.name]
            worker.events.worker_gone(worker, worker.returncode, worker.problem)


def _absolute(path: str | None) -> str | None:
    # A job may change the folder that its worker is in.
    return os.path.abspath(path) if path else None


def _untouched(worker: Worker, swept: Worker) -> list[int]:
    """What belongs to a worker while another one is swept."""
    own = [worker.pid] if worker.returncode is None else []
    return own if worker is swept else [*own, *worker.remains]
