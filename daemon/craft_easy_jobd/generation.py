"""A generation: the workers with one code and one set of settings, kept at strength until they are told to leave."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from craft_easy_jobd.admission import Catalogue
from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.background import begin
from craft_easy_jobd.errors import JobsError
from craft_easy_jobd.events import Event
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.pool import Pool
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.tenancy import Tenancy
from craft_easy_jobd.trouble import Trouble
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobs import wire
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.errors import CraftEasyJobsError
from craft_easy_jobs.wire import Entries, Outcome

logger = logging.getLogger("craft_easy_jobd.workers")

# A worker that dies before it is ready is replaced after this long, doubled each time, up to the limit.
_REPLACE_SECONDS = 0.1
_REPLACE_SECONDS_LIMIT = 10.0
# So many workers that die before any was ready mean that none ever will be.
_HOPELESS_STARTS = 3


class Listener(Protocol):
    """Who is told what workers say, and when room may have appeared."""

    def said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None: ...
    def lost(self, worker: Worker, problem: str, *, stuck: bool = False) -> None: ...
    def kick(self) -> None: ...


class Generation:
    """The workers that share code and settings, and the catalogue that they sent; implements their WorkerEvents.

    Args:
        whole: `known` waits for all workers that it begins with; else the first that is ready will do.

    Attributes:
        number: from 1, later ones are higher.
        workers: by name.
        known: done when the catalogue is known, and there for good; JobsError when the modules cannot be imported, or
            workers die of it, or whatever else `fail` was told.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        rights: Rights,
        pool: Pool,
        attempts: Attempts,
        tasks: asyncio.TaskGroup,
        listener: Listener,
        *,
        whole: bool,
    ) -> None:
        self.number = number
        self.settings = settings
        self.rights = rights
        self.tenancy = Tenancy(settings, ask=self._ask_tenants)
        self.workers: dict[str, Worker] = {}
        self._problem: str | None = None
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._whole = whole
        self._announced = Catalogue(wire.Catalogue(jobs=[]))
        self._pool = pool
        self._attempts = attempts
        self._tasks = tasks
        self._listener = listener
        self._unready_deaths = 0
        self._shortage = Trouble(logger)
        self._coming: Counter[Isolation] = Counter()
        self._leaving = False

    @property
    def problem(self) -> str | None:
        """Why no worker can be started, None when they can."""
        return self._problem or self._shortage.problem

    @property
    def catalogue(self) -> Catalogue:
        """What its workers announced, with the tenants as they are known now."""
        self._announced.directory = self.tenancy.directory
        return self._announced

    async def start(self) -> None:
        """Start the shared workers; when it returns their processes run, but are not ready yet.

        Raises:
            OSError: no process can be started now.
        """
        for _ in range(self.settings.workers):
            await self._start_now("shared")

    def leave(self) -> None:
        """No more attempts will come: each worker ends after its last one, and at once when it is not ready."""
        self._leaving = True
        self.known.cancel()
        for worker in self.workers.values():
            _let_go(worker)

    def fail(self, error: CraftEasyJobsError) -> None:
        """Its workers cannot work."""
        self._problem = str(error)
        if not self.known.done():
            # Who waits for it ends the generation with this; what the other workers say of it would only repeat it.
            self._leaving = True
            self.known.set_exception(error)
        elif not self._leaving:
            logger.error("no new worker can start", extra={"problem": self._problem})

    # -- strength

    def want_dedicated(self) -> None:
        """See to it that a dedicated worker is free or coming, within the limit of the settings.

        The next one is started when the last one is taken, so that a run seldom waits for a start. Those that an
        earlier generation still has count, so that reloads do not add up processes.
        """
        idle = any(self._attempts.load(each) == 0 and not (each.stuck or each.leaving) for each in self._of("process"))
        spare = self._coming["process"] or idle
        taken = sum(worker.isolation == "process" for worker in self._pool.workers.values())
        if not spare and not self._leaving and taken < self.settings.dedicated_workers:
            self._start("process", after=self._delay())

    def keep_spare(self) -> None:
        """The same, if there are jobs for dedicated workers."""
        if any(job.isolation == "process" for job in self._announced.jobs.values()):
            self.want_dedicated()

    def _of(self, isolation: Isolation) -> Iterator[Worker]:
        return (worker for worker in self.workers.values() if worker.isolation == isolation)

    def _start(self, isolation: Isolation, *, after: float) -> None:
        self._coming[isolation] += 1
        begin(self._tasks, self._start_later(isolation, after), f"start a {isolation} worker")

    async def _start_later(self, isolation: Isolation, after: float) -> None:
        await asyncio.sleep(after)
        try:
            if not self._leaving:
                await self._start_now(isolation)
                self._shortage.clear()
        except OSError as error:
            # Too many processes or files, no memory: that passes.
            self._shortage.meet(ChildProcessError(f"no worker can be started: {error.strerror}"))
            self._start(isolation, after=self._shortage.delay)
        self._coming[isolation] -= 1

    async def _start_now(self, isolation: Isolation) -> None:
        worker = await self._pool.start_worker(isolation, self.settings, self, generation=self.number)
        self.workers[worker.name] = worker
        if self._leaving:
            _let_go(worker)

    def _delay(self) -> float:
        if self._unready_deaths == 0:
            return 0.0
        return min(_REPLACE_SECONDS_LIMIT, _REPLACE_SECONDS * 2.0 ** (self._unready_deaths - 1))

    # -- WorkerEvents

    def worker_ready(self, worker: Worker, catalogue: wire.Catalogue) -> None:
        if catalogue.error is not None:
            self.fail(JobsError(catalogue.error))
            return
        self._problem = None
        self._unready_deaths = 0
        if catalogue.tenants is not None:
            self.tenancy.told(catalogue.tenants)
        if not self.known.done():
            self._announced = Catalogue(catalogue)
            self.keep_spare()
            if not self._whole or self._is_whole():
                self.known.set_result(None)
        elif catalogue.code_version != self._announced.code_version:
            logger.warning(
                "job modules have changed since the last reload, and a new worker has them: reload for all workers",
                extra={"worker": worker.name, "code_version": catalogue.code_version},
            )
        self._listener.kick()

    def _is_whole(self) -> bool:
        shared = sum(worker.isolation == "shared" for worker in self.workers.values())
        ready = all(worker.ready for worker in self.workers.values())
        return ready and shared == self.settings.workers and not self._coming["process"]

    def worker_said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None:
        self._listener.said(worker, messages)

    def worker_stuck(self, worker: Worker, problem: str) -> None:
        runs = ", ".join(attempt.lease.run_id for attempt in self._attempts.of(worker))
        worker.hangs = f"{problem}; it had {f'run {runs}' if runs else 'no run'}, its slots stay closed"
        facts = {"worker": worker.name, "pid": worker.pid, "problem": problem, "runs": runs}
        logger.error("worker hangs", extra={"event": Event.WORKER_HANGS, **facts})
        self._listener.lost(worker, problem, stuck=True)
        if not (self._leaving or self._coming["shared"]) and all(each.stuck for each in self._of("shared")):
            self._start("shared", after=0.0)

    def worker_listed(self, worker: Worker, tenants: wire.Tenants) -> None:
        if tenants.error is None:
            self.tenancy.told(tenants.tenants)
        else:
            self.tenancy.refused(tenants.error)

    def _ask_tenants(self) -> None:
        worker = next((worker for worker in self._of("shared") if worker.takes_attempts), None)
        if worker is not None:
            worker.send(wire.AskTenants())

    def worker_gone(self, worker: Worker, returncode: int | None, problem: str) -> None:
        facts = {"worker": worker.name, "pid": worker.pid, "problem": problem}
        told_to = self._leaving or worker.leaving
        if told_to and not self._attempts.load(worker):
            logger.debug("worker left", extra=facts)
        else:
            logger.warning("worker lost", extra={"event": None if worker.killed else Event.WORKER_LOST, **facts})
        del self.workers[worker.name]
        self._listener.lost(worker, problem)
        if not told_to:
            self._replace(worker, problem)
        self._listener.kick()

    def _replace(self, worker: Worker, problem: str) -> None:
        if not worker.ready:
            self._unready_deaths += 1
            if self._unready_deaths >= _HOPELESS_STARTS:
                self.fail(JobsError(f"workers die before they are ready: {problem}"))
        missing = self.settings.workers - len(list(self._of("shared"))) - self._coming["shared"]
        if worker.isolation == "shared" and missing > 0 and not self._leaving:
            self._start("shared", after=self._delay())


def _let_go(worker: Worker) -> None:
    worker.leave()
    if not worker.ready:
        worker.kill()
