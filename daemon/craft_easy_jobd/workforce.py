"""Keeps the worker processes at strength: the shared ones, and one spare dedicated one when jobs ask for it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from craft_easy_jobd.admission import Catalogue
from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.containment import Containment
from craft_easy_jobd.errors import JobsError
from craft_easy_jobd.ledger import Lane
from craft_easy_jobd.pool import Pool
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.tenancy import Tenancy
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobs import wire
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.wire import Entries, Outcome

logger = logging.getLogger("craft_easy_jobd.workers")

# A worker that dies before it is ready is replaced after this long, doubled each time, up to the limit.
_REPLACE_SECONDS = 0.1
_REPLACE_SECONDS_LIMIT = 10.0
# So many workers that die before any was ready mean that none ever will be.
_HOPELESS_STARTS = 3


class Listener(Protocol):
    """Who is told what workers say: the dispatcher."""

    def said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None: ...
    def lost(self, worker: Worker, problem: str, *, stuck: bool = False) -> None: ...
    def kick(self) -> None: ...


class Workforce:
    """The workers and the catalogue of jobs that they sent; implements the pool's WorkerEvents.

    Attributes:
        problem: why no worker can be started, None when they can.
        known: done when the first worker is ready; JobsError when the modules cannot be imported, or workers die of it.
    """

    listener: Listener

    def __init__(
        self, settings: Settings, attempts: Attempts, tasks: asyncio.TaskGroup, containment: Containment
    ) -> None:
        self.tenancy = Tenancy(settings, ask=self._ask_tenants)
        self._announced = Catalogue(wire.Catalogue(jobs=[]))
        self.problem: str | None = None
        self._settings = settings
        self._attempts = attempts
        self._tasks = tasks
        self._pool = Pool(settings, self, tasks, containment)
        self.start_helper = self._pool.start_helper
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unready_deaths = 0
        self._coming: Counter[Isolation] = Counter()
        self._hanging: dict[str, str] = {}
        self._closing = False

    @property
    def problems(self) -> list[str]:
        """Why workers are missing, one sentence each."""
        own = [problem for problem in (self.problem, self.tenancy.problem) if problem]
        return [*own, *self._hanging.values()]

    @property
    def catalogue(self) -> Catalogue:
        """What the workers announced last, with the tenants as they are known now."""
        self._announced.directory = self.tenancy.directory
        return self._announced

    @property
    def workers(self) -> list[Worker]:
        return list(self._pool.workers.values())

    async def start(self) -> None:
        """Start the shared workers; when it returns their processes run, but are not ready yet."""
        for _ in range(self._settings.workers):
            await self._pool.start_worker("shared")

    async def close(self, *, grace: float) -> None:
        self._closing = True
        await self._pool.close(grace=grace)

    # -- room

    def free(self, worker: Worker) -> int:
        """Free slots of a worker; none when it takes no attempts now."""
        if not worker.ready or worker.leaving or worker.killed or worker.blocked is not None:
            return 0
        return worker.slots - self._attempts.load(worker)

    def room(self, isolation: Isolation) -> int:
        return sum(self.free(worker) for worker in self._of(isolation))

    def roomiest(self, isolation: Lane) -> Worker | None:
        """The worker with the most free slots, None when there is no room at all."""
        worker = max(self._of(isolation), key=self.free, default=None)
        return worker if worker is not None and self.free(worker) > 0 else None

    def _of(self, isolation: Lane) -> Iterator[Worker]:
        return (worker for worker in self._pool.workers.values() if worker.isolation == isolation)

    # -- strength

    def want_dedicated(self) -> None:
        """See to it that a dedicated worker is free or coming, within the limit of the settings.

        The next one is started when the last one is taken, so that a run seldom waits for a start.
        """
        dedicated = list(self._of("process"))
        idle = any(self._attempts.load(each) == 0 and not (each.stuck or each.leaving) for each in dedicated)
        spare = self._coming["process"] or idle
        if not spare and not self._closing and len(dedicated) < self._settings.dedicated_workers:
            self._start("process", after=0.0)

    def _start(self, isolation: Isolation, *, after: float) -> None:
        self._coming[isolation] += 1
        self._tasks.create_task(self._start_worker(isolation, after), name=f"start a {isolation} worker")

    async def _start_worker(self, isolation: Isolation, after: float) -> None:
        await asyncio.sleep(after)
        if not self._closing:
            await self._pool.start_worker(isolation)
        self._coming[isolation] -= 1

    # -- WorkerEvents

    def worker_ready(self, worker: Worker, catalogue: wire.Catalogue) -> None:
        if catalogue.error is not None:
            self._cannot_work(catalogue.error)
            return
        self.problem = None
        self._unready_deaths = 0
        self._announced = Catalogue(catalogue)
        if catalogue.tenants is not None:
            self.tenancy.told(catalogue.tenants)
        if not self.known.done():
            self.known.set_result(None)
        if any(job.isolation == "process" for job in catalogue.jobs):
            self.want_dedicated()
        self.listener.kick()

    def worker_said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None:
        self.listener.said(worker, messages)

    def worker_stuck(self, worker: Worker, problem: str) -> None:
        runs = ", ".join(attempt.lease.run_id for attempt in self._attempts.of(worker))
        self._hanging[worker.name] = f"{problem}; it had {f'run {runs}' if runs else 'no run'}, its slots stay closed"
        logger.error("worker hangs", extra={"worker": worker.name, "pid": worker.pid, "problem": problem, "runs": runs})
        self.listener.lost(worker, problem, stuck=True)
        if not (self._closing or self._coming["shared"]) and all(each.stuck for each in self._of("shared")):
            self._start("shared", after=0.0)

    def worker_listed(self, worker: Worker, tenants: wire.Tenants) -> None:
        if tenants.error is None:
            self.tenancy.told(tenants.tenants)
        else:
            self.tenancy.refused(tenants.error)

    def _ask_tenants(self) -> None:
        worker = self.roomiest("shared")
        if worker is not None:
            worker.send(wire.AskTenants())

    def worker_gone(self, worker: Worker, returncode: int | None, problem: str) -> None:
        facts = {"worker": worker.name, "pid": worker.pid, "problem": problem}
        self.listener.lost(worker, problem)
        self._hanging.pop(worker.name, None)
        if self._closing or worker.leaving:
            logger.debug("worker left", extra=facts)
            return
        logger.warning("worker lost", extra=facts)
        if not worker.ready:
            self._unready_deaths += 1
            if self._unready_deaths >= _HOPELESS_STARTS:
                self._cannot_work(f"workers die before they are ready: {problem}")
        missing = self._settings.workers - len(list(self._of("shared"))) - self._coming["shared"]
        if worker.isolation == "shared" and missing > 0:
            self._start("shared", after=self._delay())
        self.listener.kick()

    def _delay(self) -> float:
        if self._unready_deaths == 0:
            return 0.0
        return min(_REPLACE_SECONDS_LIMIT, _REPLACE_SECONDS * 2.0 ** (self._unready_deaths - 1))

    def _cannot_work(self, problem: str) -> None:
        self.problem = problem
        if not self.known.done():
            # The daemon ends with this; what the other workers say of it would only repeat it.
            self._closing = True
            self.known.set_exception(JobsError(problem))
        elif not self._closing:
            logger.error("no new worker can start", extra={"problem": problem})
