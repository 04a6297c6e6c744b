"""Builds the status out of what the parts know."""

import os
import time
from collections.abc import Iterable, Mapping
from itertools import islice

from craft_easy_jobd.accounting import Accounting
from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.probe import Blockage
from craft_easy_jobd.settings import Settings
from craft_easy_jobd.states import RunState
from craft_easy_jobd.status import Blocked, ContainmentKind, Status, WorkerState, WorkerStatus
from craft_easy_jobd.stopping import Level, daemon_state
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs import __version__

# More than a screen shows; `list --state running` has them all.
_RUNNING_SHOWN = 100
# A job may have thousands, and the loop waits for each to be looked at.
_PROCESSES_COUNTED = 30


def report(
    *,
    settings: Settings,
    level: Level,
    ready: bool,
    uptime_seconds: float,
    counts: Mapping[RunState, int],
    workforce: Workforce,
    attempts: Attempts,
    containment: ContainmentKind,
    accounting: Accounting,
    publishing: int | None,
    problems: Iterable[str | None],
) -> Status:
    return Status(
        version=__version__,
        pid=os.getpid(),
        state=daemon_state(level, ready=ready),
        ladder=level,
        uptime_seconds=round(uptime_seconds, 3),
        root=os.path.abspath(settings.root),
        jobs=len(workforce.catalogue.jobs),
        generation=workforce.current.number,
        code_version=workforce.catalogue.code_version,
        containment=containment,
        accounting=accounting.kind,
        accounting_note=accounting.note,
        publishing=publishing,
        runs=dict(counts),
        workers=[_worker(worker, attempts.load(worker)) for worker in workforce.workers],
        running=[attempt.status() for attempt in islice(attempts, _RUNNING_SHOWN)],
        problems=[problem for problem in problems if problem],
    )


def _worker(worker: Worker, busy: int) -> WorkerStatus:
    footprint = worker.account.look(at_most=_PROCESSES_COUNTED)
    return WorkerStatus(
        name=worker.name,
        pid=worker.pid,
        isolation=worker.isolation,
        generation=worker.generation,
        code_version=worker.code_version,
        slots=worker.slots,
        busy=busy,
        cpu_seconds=round(footprint.cpu_seconds, 2),
        rss_bytes=footprint.memory_bytes,
        loop_lag_seconds=round(worker.lag_seconds, 3),
        blocked=_blocked(worker.blocked),
        state=_state(worker),
    )


def _state(worker: Worker) -> WorkerState:
    if worker.stuck:
        return "stuck"
    return "leaving" if worker.leaving else "ready" if worker.ready else "starting"


def _blocked(blockage: Blockage | None) -> Blocked | None:
    if blockage is None:
        return None
    return Blocked(
        run_id=blockage.mark.run_id if blockage.mark else None,
        seconds=round(time.monotonic() - blockage.since, 3),
        place=blockage.place,
        stopped=blockage.stopped,
    )
