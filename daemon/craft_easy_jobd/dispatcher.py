"""Gives queued runs to workers with free slots, and takes in what the workers report: the middle of the daemon.

It keeps no queue of its own, the ledger is the queue; and it awaits nothing: what a frame or a claim brings is turned
into calls to the ledger at once, so that all of it shares the next commit.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from craft_easy_jobd.alarm import Alarm
from craft_easy_jobd.attempts import Attempt, Attempts
from craft_easy_jobd.bell import Bell
from craft_easy_jobd.commits import Commits
from craft_easy_jobd.ledger import Again, Lease, Ledger, LogChunk, Result, RunSpec, Slice, Started, Submitted
from craft_easy_jobd.settling import Settling
from craft_easy_jobd.states import RunState
from craft_easy_jobd.stopping import Cause, Rung
from craft_easy_jobd.verdicts import Ended
from craft_easy_jobd.worker_process import Worker
from craft_easy_jobd.workforce import Workforce
from craft_easy_jobs.definition import Isolation, JobOptions
from craft_easy_jobs.wire import Entries, Outcome

_ISOLATIONS: tuple[Isolation, ...] = ("shared", "process")
# Beyond this many runs a claim would only make the first of them wait.
_CLAIM_AT_MOST = 500
# This share of a memory limit may be taken by what earlier attempts left in the worker.
_LEFT_OVER = 0.25
_UNSTARTED = "not started yet"
_UNKNOWN_JOB = "job {!r} is no longer registered; restore its module or submit the request for another job"


class Dispatcher:
    """Claims and places runs, and has those settled that workers report.

    Args:
        ended: called after a commit that ended runs: there is something to publish.
    """

    def __init__(
        self,
        ledger: Ledger,
        commits: Commits,
        bell: Bell,
        workforce: Workforce,
        attempts: Attempts,
        *,
        ended: Callable[[], None],
    ) -> None:
        self._attempts = attempts
        self._open = False
        self._ledger = ledger
        self._workforce = workforce
        self._claiming: dict[Isolation, int] = dict.fromkeys(_ISOLATIONS, 0)
        self._homeless: deque[Lease] = deque()
        self._commits = commits
        self._settling = Settling(ledger, commits, bell, workforce, ended=ended, settled=self._settled)
        # When the next scheduled or retrying run is due.
        self._alarm = Alarm(self.kick)

    # -- claiming and placing

    def open(self) -> None:
        """Start to give out runs."""
        self._open = True
        self.kick()

    def close(self) -> None:
        """Give out no more runs; those that are claimed but not started go back."""
        self._open = False
        self._alarm.set(None)
        self._give_back(self._homeless)
        self._homeless.clear()

    def kick(self, *, submitted: bool = False) -> None:
        """Claim what there is room for; to be called whenever room or work may have appeared.

        Args:
            submitted: runs were handed to the ledger in this turn of the loop, so that counts do not know them yet.
        """
        if not self._open:
            return
        self._place_homeless()
        due = self._ledger.next_due
        self._alarm.set(due)
        if not (submitted or self._ledger.counts[RunState.QUEUED] or (due is not None and due <= time.time())):
            return
        for isolation in _ISOLATIONS:
            if room := self._room(isolation):
                self._claiming[isolation] += room
                claim = partial(self._ledger.claim, room, isolation=isolation)
                self._commits.call(claim, partial(self._claimed, isolation, room))

    def submit(self, specs: Sequence[RunSpec], came_in: Slice | None = None) -> "asyncio.Future[list[Submitted]]":
        """Hand runs to the ledger; all that is to start at once costs one commit."""
        answer: asyncio.Future[list[Submitted]] = asyncio.get_running_loop().create_future()
        room = self._room_for(specs)
        for isolation, runs in room.items():
            self._claiming[isolation] += runs
        self._commits.once(self._ledger.start(specs, room, came_in=came_in), partial(self._submitted, room, answer))
        if not room:
            self.kick(submitted=True)
        return answer

    def look_again(self) -> None:
        """Once a second: what a jump of the wall clock, or a queue that only dedicated workers can take, needs."""
        self._settling.sum_up()
        self._alarm.set(None)
        self.kick()
        if self._open and self._ledger.counts[RunState.QUEUED] and self._workforce.room("shared"):
            self._workforce.want_dedicated()

    def _room(self, isolation: Isolation) -> int:
        return max(0, min(self._workforce.room(isolation) - self._claiming[isolation], _CLAIM_AT_MOST))

    def _room_for(self, specs: Sequence[RunSpec]) -> dict[Isolation, int]:
        """Room for runs that may start by being submitted; none when a claim has to look who is first."""
        wanted = Counter(spec.isolation for spec in specs)
        if not self._open or wanted["none"] or self._ledger.counts[RunState.QUEUED]:
            return {}
        room = {isolation: min(wanted[isolation], self._room(isolation)) for isolation in _ISOLATIONS}
        return {isolation: runs for isolation, runs in room.items() if runs}

    def _submitted(
        self,
        room: Mapping[Isolation, int],
        answer: "asyncio.Future[list[Submitted]]",
        started: "asyncio.Future[Started]",
    ) -> None:
        for isolation, runs in room.items():
            self._claiming[isolation] -= runs
        error = started.exception()
        if error is None:
            self._start(started.result().leases)
        if answer.done():  # who asked is gone
            return
        if error is None:
            answer.set_result(started.result().submitted)
        else:
            answer.set_exception(error)

    def _claimed(self, isolation: Isolation, asked: int, leases: list[Lease]) -> None:
        self._claiming[isolation] -= asked
        self._start(leases)

    def _start(self, leases: list[Lease]) -> None:
        if not self._open:
            self._give_back(leases)
            return
        for lease in leases:
            self._place(lease)
        self._workforce.flush()
        self.kick()

    def _place(self, lease: Lease) -> None:
        """Start the attempt in the worker of its isolation that has the most room."""
        options = self._workforce.catalogue.jobs.get(lease.spec.job)
        if options is None:
            self._settling.finish([(lease, _unstarted(lease, "unknown_job", _UNKNOWN_JOB.format(lease.spec.job)))])
        elif options.memory_limit_mb is not None and lease.spec.isolation == "shared":
            # Queued before its job got the limit.
            self._give_back([lease], "process")
        elif worker := _fit(self._workforce.roomiest(lease.spec.isolation), options):
            self._attempts.start(lease, options, worker)
            self._settling.started(lease)
        else:
            # The worker that had the room is gone since; the next one that is ready takes the lease.
            self._homeless.append(lease)
        if lease.spec.isolation == "process":
            self._workforce.want_dedicated()

    def _place_homeless(self) -> None:
        for _ in range(len(self._homeless)):
            self._place(self._homeless.popleft())

    def _give_back(self, leases: Iterable[Lease], to: Isolation | None = None) -> None:
        self._settling.again(
            [Again(lease, "interrupted", _UNSTARTED, interrupted=True, isolation=to) for lease in leases]
        )

    def _settled(self, *, apart: bool) -> None:
        """Slots are free, or runs wait again; with `apart`, for a worker of their own."""
        if apart:
            self._workforce.want_dedicated()
        self.kick()

    # -- what workers report

    def said(self, worker: Worker, messages: Sequence[Entries | Outcome]) -> None:
        """Take in one frame of a worker."""
        chunks: list[LogChunk] = []
        ended: list[tuple[Attempt, Outcome]] = []
        for message in messages:
            attempt = self._attempts.get(message.run_id, message.token)
            if attempt is None:
                continue
            if isinstance(message, Entries):
                attempt.progress = message.progress or attempt.progress
                chunks.append(LogChunk(message.run_id, message.token, message.entries, message.count, message.warnings))
            else:
                self._attempts.end(attempt)
                ended.append((attempt, message))
        if chunks:
            self._settling.log(chunks)
        if ended:
            self._settling.settle([_facts(attempt, outcome) for attempt, outcome in ended])
            self.kick()

    def lost(self, worker: Worker, problem: str, *, stuck: bool = False) -> None:
        """Settle what a worker that is gone, or stuck on its way, had in hand."""
        attempts = self._attempts.of(worker)
        killed = any(attempt.rung is Rung.KILLED for attempt in attempts)
        for attempt in attempts:
            self._attempts.end(attempt)
        self._settling.settle([_facts(attempt, None, problem, bystander=killed, stuck=stuck) for attempt in attempts])

    def cancel(self, run_id: str, *, force: bool) -> None:
        """An operator's wish, already in the ledger, for a run that is active."""
        if attempt := self._attempts.get(run_id):
            attempt.cancel_asked = True
            self._attempts.ask(attempt)
            if force:
                self._attempts.cut(attempt, Cause.CANCELLED)
        for lease in [lease for lease in self._homeless if lease.run_id == run_id]:
            self._homeless.remove(lease)
            self._settling.finish([(lease, _unstarted(lease, "cancelled", "cancelled before it started"))])


def _fit(worker: Worker | None, options: JobOptions) -> Worker | None:
    """The worker, None when earlier attempts left so much in it that this one would end for it; that one leaves."""
    limit = options.memory_limit_bytes
    if worker is None or limit is None or worker.account.left_over() <= limit * _LEFT_OVER:
        return worker
    worker.leave()
    return None


def _facts(
    attempt: Attempt, outcome: Outcome | None, problem: str = "", *, bystander: bool = False, stuck: bool = False
) -> Ended:
    return Ended(
        lease=attempt.lease,
        options=attempt.options,
        outcome=outcome,
        cause=attempt.cause,
        cancel_asked=attempt.cancel_asked,
        problem=problem,
        bystander=bystander,
        stuck=stuck,
        started_at=attempt.started_at,
        completed_at=attempt.completed_at,
        worker=attempt.worker.name,
        code_version=attempt.worker.code_version,
        used=attempt.used,
        within_limit=attempt.worker.oom_kill == "machine",
    )


def _unstarted(lease: Lease, reason: str, error: str) -> Result:
    now = time.time()
    return Result(
        state=RunState.FAILED,
        reason=reason,
        result=b"null",
        error=error,
        started_at=now,
        completed_at=now,
        attempts=lease.attempt,
    )
