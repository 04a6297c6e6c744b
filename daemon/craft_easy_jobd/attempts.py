"""The attempts that are being carried out now, each with its clock and its way down the kill ladder."""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from craft_easy_jobd.accounting import NOT_SEEN, Used
from craft_easy_jobd.events import Event
from craft_easy_jobd.ledger import Lease
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import RunningStatus
from craft_easy_jobd.stopping import Cause, Rung
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobs.definition import JobOptions
from craft_easy_jobs.wire import Cancel, Start, Stop

logger = logging.getLogger("craft_easy_jobd.workers")


@dataclass(slots=True)
class Attempt:
    """One attempt in a worker. `started` is on the monotonic clock, `started_at` in Unix seconds.

    `blocks_told`: how often its log says that it blocked its worker's loop. `used`: known at its end, if it was alone.
    """

    lease: Lease
    options: JobOptions
    worker: Worker
    started: float
    started_at: float
    timer: asyncio.TimerHandle
    rung: Rung = Rung.NONE
    cause: Cause | None = None
    cancel_asked: bool = False
    progress: tuple[str, int | None] | None = None
    blocks_told: int = 0
    used: Used = NOT_SEEN

    @property
    def is_alone(self) -> bool:
        """It has its worker to itself: what the worker uses is used by it."""
        return self.worker.isolation == "process"

    @property
    def completed_at(self) -> float:
        """Now, as start plus what the monotonic clock counted: a jump of the wall clock cannot bend a duration."""
        return self.started_at + (time.monotonic() - self.started)

    def status(self) -> RunningStatus:
        spec = self.lease.spec
        return RunningStatus(
            run_id=spec.run_id,
            job=spec.job,
            tenant_id=spec.tenant_id,
            scope=spec.scope,
            attempt=self.lease.attempt,
            state=RunState.RUNNING if self.rung is Rung.NONE else RunState.STOPPING,
            age_seconds=round(time.monotonic() - self.started, 3),
            progress=self.progress[0] if self.progress else None,
            percentage=self.progress[1] if self.progress else None,
            worker=self.worker.name,
        )


class Attempts:
    """All attempts by run_id. `idle` is set while there is none, `any_alone` while one has its worker to itself."""

    def __init__(self) -> None:
        self._by_run: dict[str, Attempt] = {}
        self._alone: dict[str, Attempt] = {}
        self.any_alone = asyncio.Event()
        self._by_worker: dict[str, dict[str, Attempt]] = {}
        self.idle = asyncio.Event()
        self.idle.set()

    def __len__(self) -> int:
        return len(self._by_run)

    def __iter__(self) -> Iterator[Attempt]:
        """Oldest first."""
        return iter(self._by_run.values())

    def get(self, run_id: str, token: int | None = None) -> Attempt | None:
        """The attempt of this run; with a token only if it is the one of that lease."""
        attempt = self._by_run.get(run_id)
        return attempt if attempt and token in (None, attempt.lease.token) else None

    def alone(self) -> list[Attempt]:
        """Those that have their worker to themselves."""
        return list(self._alone.values())

    def of(self, worker: Worker) -> list[Attempt]:
        return list(self._by_worker.get(worker.name, {}).values())

    def load(self, worker: Worker) -> int:
        """How many slots of the worker are taken."""
        return len(self._by_worker.get(worker.name, ()))

    def start(self, lease: Lease, options: JobOptions, worker: Worker) -> None:
        """Send the attempt to the worker; its clock starts now, not when the worker says so."""
        spec = lease.spec
        attempt = Attempt(
            lease=lease,
            options=options,
            worker=worker,
            started=time.monotonic(),
            started_at=time.time(),
            timer=asyncio.get_running_loop().call_later(options.timeout_seconds, self._overrun, lease),
        )
        self._by_run[lease.run_id] = self._by_worker.setdefault(worker.name, {})[lease.run_id] = attempt
        self.idle.clear()
        if attempt.is_alone:
            worker.account.begin(options.memory_limit_bytes)
            self._alone[lease.run_id] = attempt
            self.any_alone.set()
        message = Start(
            run_id=lease.run_id,
            token=lease.token,
            attempt=lease.attempt,
            job=spec.job,
            params=spec.params,
            tenant_id=spec.tenant_id,
            scope=spec.scope,
            sub_tenant_ids=msgspec.json.decode(spec.sub_tenant_ids) if spec.sub_tenant_ids else [],
            upstream=spec.upstream or b"{}",
        )
        worker.send(message)

    def end(self, attempt: Attempt) -> None:
        """It is over, however it ended."""
        attempt.timer.cancel()
        own = self._by_worker[attempt.worker.name]
        del self._by_run[attempt.lease.run_id], own[attempt.lease.run_id]
        if not own:
            del self._by_worker[attempt.worker.name]
        if self._alone.pop(attempt.lease.run_id, None):
            attempt.used = attempt.worker.account.end()
            # Beside others it is not known whose memory it was; each of them runs alone next.
            if attempt.worker.oom_kill:
                attempt.cause = attempt.cause or Cause.OUT_OF_MEMORY
        if not self._alone:
            self.any_alone.clear()
        if not self._by_run:
            self.idle.set()

    def ask(self, attempt: Attempt) -> None:
        """First rung: `request_stop()`, and the job goes on."""
        if attempt.rung is Rung.NONE:
            attempt.rung = Rung.ASKED
            attempt.worker.send(Stop(attempt.lease.run_id, attempt.lease.token))

    def cut(self, attempt: Attempt, cause: Cause) -> None:
        """Second rung: `task.cancel()`; the third follows after the grace. The first cause stays."""
        if attempt.rung >= Rung.CANCELLED:
            return
        attempt.rung = Rung.CANCELLED
        attempt.cause = cause
        attempt.worker.send(Cancel(attempt.lease.run_id, attempt.lease.token))
        self._set_timer(attempt, attempt.options.grace_seconds)

    def kill(self, attempt: Attempt, cause: Cause) -> None:
        """Third rung: the worker goes, with everything that it started."""
        attempt.rung = Rung.KILLED
        attempt.cause = attempt.cause or cause
        if not attempt.worker.killed:
            facts = {"worker": attempt.worker.name, "pid": attempt.worker.pid, "reason": attempt.cause}
            logger.warning("worker killed", extra={"event": Event.WORKER_KILLED, **attempt.lease.names, **facts})
        attempt.worker.kill()

    def _set_timer(self, attempt: Attempt, seconds: float) -> None:
        attempt.timer.cancel()
        attempt.timer = asyncio.get_running_loop().call_later(seconds, self._overrun, attempt.lease)

    def _overrun(self, lease: Lease) -> None:
        attempt = self.get(lease.run_id, lease.token)
        if attempt is None:
            return
        if attempt.rung < Rung.CANCELLED:
            self.cut(attempt, Cause.TIMED_OUT)
        else:
            self.kill(attempt, Cause.TIMED_OUT)
