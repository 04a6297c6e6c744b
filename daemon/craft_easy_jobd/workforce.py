"""All workers: those of the current generation, which take attempts, and those of earlier ones, which finish theirs."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import count

from craft_easy_jobd.admission import Catalogue, Rules
from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.containment import Containment
from craft_easy_jobd.errors import JobsError
from craft_easy_jobd.generation import Generation, Listener
from craft_easy_jobd.identity import Rights
from craft_easy_jobd.ledger import Lane
from craft_easy_jobd.nursery import Nursery
from craft_easy_jobd.pool import Pool
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.tenancy import Tenancy
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.errors import CraftEasyJobsError
from craft_easy_jobs.wire import Entries, Outcome


class Workforce:
    """The workers by generation; what they say goes to `listener`.

    Attributes:
        current: its settings are those in force, its catalogue has the jobs that there are.
    """

    listener: Listener

    def __init__(
        self,
        settings: Settings,
        rights: Rights,
        attempts: Attempts,
        tasks: asyncio.TaskGroup,
        containment: Containment,
        nursery: Nursery,
    ) -> None:
        self._attempts = attempts
        self._tasks = tasks
        self._pool = Pool(tasks, containment, nursery)
        self.start_helper = self._pool.start_helper
        self._numbers = count(1)
        # The first one begins with what is there; a later one takes over at full strength.
        self.current = self._generation(settings, rights, whole=False)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.current.settings

    @property
    def rules(self) -> Rules:
        """What requests are admitted by."""
        return Rules(self.current.settings, self.current.rights, self.current.catalogue)

    @property
    def tenancy(self) -> Tenancy:
        return self.current.tenancy

    @property
    def catalogue(self) -> Catalogue:
        return self.current.catalogue

    @property
    def problems(self) -> list[str]:
        """Why workers are missing, one sentence each."""
        own = [problem for problem in (self.current.problem, self.tenancy.problem) if problem]
        return [*own, *(worker.hangs for worker in self.workers if worker.hangs)]

    @property
    def workers(self) -> list[Worker]:
        return list(self._pool.workers.values())

    async def close(self, *, grace: float) -> None:
        """Let all workers leave, and kill those that have not after `grace` seconds."""
        self.current.leave()
        await self._pool.close(grace=grace)

    # -- generations

    def prepare(self, settings: Settings, rights: Rights) -> Generation:
        """Begin to start a generation; its `known` says when it can be adopted, or why not."""
        candidate = self._generation(settings, rights, whole=True)
        self._tasks.create_task(_start(candidate), name=f"start generation {candidate.number}")
        return candidate

    def adopt(self, candidate: Generation) -> None:
        """Give all further attempts to this generation; the workers of the one before leave after their last."""
        before, self.current = self.current, candidate
        before.leave()
        self.kick()

    def _generation(self, settings: Settings, rights: Rights, *, whole: bool) -> Generation:
        number = next(self._numbers)
        return Generation(number, settings, rights, self._pool, self._attempts, self._tasks, self, whole=whole)

    # -- room

    def free(self, worker: Worker) -> int:
        """Free slots of a worker; none when it takes no attempts now."""
        return worker.slots - self._attempts.load(worker) if worker.takes_attempts else 0

    def room(self, isolation: Isolation) -> int:
        return sum(self.free(worker) for worker in self._of(isolation))

    def roomiest(self, isolation: Lane) -> Worker | None:
        """The worker with the most free slots, None when there is no room at all."""
        worker = max(self._of(isolation), key=self.free, default=None)
        return worker if worker is not None and self.free(worker) > 0 else None

    def flush(self) -> None:
        """Send what was put for workers now, not at the end of this turn of the loop."""
        for worker in self.workers:
            worker.flush()

    # -- strength

    def want_dedicated(self) -> None:
        """See to it that a dedicated worker is free or coming."""
        self.current.want_dedicated()

    def _of(self, isolation: Lane) -> Iterator[Worker]:
        return (worker for worker in self.current.workers.values() if worker.isolation == isolation)

    # -- Listener, of all generations

    def said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None:
        self.listener.said(worker, messages)

    def lost(self, worker: Worker, problem: str, *, stuck: bool = False) -> None:
        self.listener.lost(worker, problem, stuck=stuck)

    def kick(self) -> None:
        # A dedicated worker of an earlier generation that has left makes room for one of this.
        self.current.keep_spare()
        self.listener.kick()


async def _start(candidate: Generation) -> None:
    try:
        await candidate.tenancy.load()
        await candidate.start()
    except CraftEasyJobsError as error:
        candidate.fail(error)
    except OSError as error:
        candidate.fail(JobsError(f"no worker can be started: {error.strerror}"))
