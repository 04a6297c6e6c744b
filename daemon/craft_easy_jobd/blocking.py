"""Names what keeps a worker's loop from turning: which run, and where in its code."""

import asyncio
import logging
import time
from typing import Literal, NamedTuple

import msgspec

from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.events import Event
from craft_easy_jobd.generation import Listener
from craft_easy_jobd.probe import Blockage, Evidence
from craft_easy_jobd.stacks import Stack
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs.definition import Isolation
from craft_easy_jobs.model import Level, LogEntry, timestamp
from craft_easy_jobs.wire import BEAT_SECONDS, Entries

logger = logging.getLogger("craft_easy_jobd.workers")

LOOK_SECONDS = 0.1
# Two beats are missing by then. With the looks that follow, a run is named within 1 s.
SILENT_SECONDS = 2 * BEAT_SECONDS
# A look that comes so late: the supervisor was held up itself, and the beats may be waiting for it.
LATE_SECONDS = 0.2
# A run that blocks again and again is told so often.
TOLD_AT_MOST = 20

_SHARED = 'the runs beside it wait; use await asyncio.to_thread(...) or isolation="process"'
_DEDICATED = "it cannot be asked to stop meanwhile; use await asyncio.to_thread(...)"

_encode = msgspec.json.Encoder().encode


class Case(NamedTuple):
    """A worker that says nothing. `beat_at`: its last beat; `asked`: for its stack, in this case."""

    beat_at: float
    evidence: Evidence
    asked: bool


class Watch:
    """Looks ten times a second whether each worker's loop turns, and finds out why when it does not."""

    def __init__(self, workforce: Workforce, attempts: Attempts, listener: Listener) -> None:
        self._workforce = workforce
        self._attempts = attempts
        self._listener = listener
        self._cases: dict[str, Case] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            due = time.monotonic() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            self.look(now, late=now - due)

    def look(self, now: float, *, late: float) -> None:
        """Look at every worker; at `late` seconds after the time for it."""
        workers = [worker for worker in self._workforce.workers if _is_to_be_watched(worker)]
        self._cases = {worker.name: self._cases[worker.name] for worker in workers if worker.name in self._cases}
        for worker in workers:
            if late > LATE_SECONDS and worker.blocked is None:
                self._excuse(worker, now)
            else:
                self._look_at(worker, now)

    def _look_at(self, worker: Worker, now: float) -> None:
        case = self._cases.get(worker.name)
        if case is None:
            if now - worker.beat_at >= SILENT_SECONDS:
                self._open(worker)
        elif worker.beat_at > case.beat_at:
            self._close(worker, now)
        else:
            self._investigate(worker, case, now)

    def _open(self, worker: Worker) -> None:
        evidence = worker.probe.look(worker.pid)
        if evidence.answers:
            worker.probe.ask(worker.pid)
        self._cases[worker.name] = Case(worker.beat_at, evidence, asked=evidence.answers)

    def _investigate(self, worker: Worker, case: Case, now: float) -> None:
        evidence = worker.probe.look(worker.pid)
        if (evidence.stopped, evidence.mark) != (case.evidence.stopped, case.evidence.mark):
            # Something went on meanwhile: it is not this that blocks, or no longer.
            self._close(worker, now)
            self._excuse(worker, now)
        elif worker.blocked is not None:
            return
        elif evidence.answers and not case.asked:
            self._open(worker)
        else:
            self._decide(worker, evidence, worker.probe.answer() if case.asked else None, now)

    def _decide(self, worker: Worker, evidence: Evidence, stack: Stack | None, now: float) -> None:
        verdict = judge(evidence, stack)
        if verdict == "idle":
            self._excuse(worker, now)
        elif verdict == "blocked":
            worker.blocked = blockage(evidence, stack, since=worker.beat_at + BEAT_SECONDS)
            self._tell(worker, worker.blocked, "warning", blocks_text(worker.blocked, worker.isolation, now))

    def _close(self, worker: Worker, now: float) -> None:
        del self._cases[worker.name]
        if worker.blocked is not None:
            ended, worker.blocked = worker.blocked, None
            self._tell(worker, ended, "info", f"the event loop of its worker turns again, after {ended.lasted(now)}")
            self._listener.kick()

    def _excuse(self, worker: Worker, now: float) -> None:
        """Count its silence from now on."""
        self._cases.pop(worker.name, None)
        worker.beat_at = now

    def _tell(self, worker: Worker, blockage: Blockage, level: Level, text: str) -> None:
        """Write it into the log of the run, if a run is to blame and is still there, and into the daemon's own."""
        attempt = blockage.mark and self._attempts.get(*blockage.mark)
        if attempt:
            attempt.blocks_told += level == "warning"
            if attempt.blocks_told > TOLD_AT_MOST:
                return
            entry = LogEntry(timestamp=timestamp(time.time()), level=level, message=text, percentage=None)
            lease = attempt.lease
            self._listener.said(
                worker, [Entries(lease.run_id, lease.token, _encode(entry), 1, warnings=int(level == "warning"))]
            )
        names = attempt.lease.names if attempt else {"run_id": blockage.mark and blockage.mark.run_id}
        facts = {"worker": worker.name, "place": blockage.place, "problem": text}
        blocked = level == "warning"
        state, event = ("does not turn", Event.LOOP_BLOCKED) if blocked else ("turns again", None)
        logger.warning("the event loop of a worker %s", state, extra={"event": event, **names, **facts})


def _is_to_be_watched(worker: Worker) -> bool:
    return worker.ready and not worker.killed and worker.returncode is None


def judge(evidence: Evidence, stack: Stack | None) -> Literal["wait", "idle", "blocked"]:
    """Decide about a worker that has been silent for long and of whom the same is to be seen twice."""
    if evidence.stopped:
        return "blocked"
    if stack is None:
        # Who was asked and had no time for it is short of the processor; that is nobody's fault.
        return "wait" if evidence.asked else "blocked" if evidence.mark else "idle"
    return "blocked" if (stack.in_step if evidence.mark else stack.place) else "idle"


def blockage(evidence: Evidence, stack: Stack | None, *, since: float) -> Blockage:
    """What keeps the loop; a process that is stopped accuses no run."""
    if evidence.stopped:
        return Blockage(since, mark=None, place=None, stopped=True)
    return Blockage(since, evidence.mark, stack.place if stack else None)


def blocks_text(blockage: Blockage, isolation: Isolation, now: float) -> str:
    """The warning in the run's log."""
    if blockage.stopped:
        return f"is stopped by a signal for {blockage.lasted(now)}; SIGCONT lets it go on"
    where = f" at {blockage.place}" if blockage.place else ""
    advice = _SHARED if isolation == "shared" else _DEDICATED
    return f"blocks the event loop of its worker for {blockage.lasted(now)}{where}; {advice}"
