"""Gives queued runs to workers with free slots, and settles what the workers report: the middle of the daemon.

It keeps no queue of its own, the ledger is the queue; and it awaits nothing: what a frame or a claim brings is turned
into calls to the ledger at once, so that all of it shares the next commit.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from craft_easy_jobd.attempts import Attempt, Attempts
from craft_easy_jobd.bell import Bell
from craft_easy_jobd.commits import Commits
from craft_easy_jobd.endings import Endings
from craft_easy_jobd.ledger import Again, Lease, Ledger, LogChunk, Result
from craft_easy_jobd.states import RunState
from craft_easy_jobd.stopping import Cause, Rung
from craft_easy_jobd.verdicts import Ended, judge
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
    """Claims, places and settles runs.

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
        self._bell = bell
        self._workforce = workforce
        self._ended = ended
        self._claiming: dict[Isolation, int] = dict.fromkeys(_ISOLATIONS, 0)
        self._homeless: deque[Lease] = deque()
        self._commits = commits
        self._endings = Endings()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: float | None = None

    # -- claiming and placing

    def open(self) -> None:
        """Start to give out runs."""
        self._open = True
        self.kick()

    def close(self) -> None:
        """Give out no more runs; those that are claimed but not started go back."""
        self._open = False
        self._set_alarm(None)
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
        self._set_alarm(due)
        if not (submitted or self._ledger.counts[RunState.QUEUED] or (due is not None and due <= time.time())):
            return
        for isolation in _ISOLATIONS:
            room = min(self._workforce.room(isolation) - self._claiming[isolation], _CLAIM_AT_MOST)
            if room > 0:
                self._claiming[isolation] += room
                claim = partial(self._ledger.claim, room, isolation=isolation)
                self._commits.call(claim, partial(self._claimed, isolation, room))

    def look_again(self) -> None:
        """Once a second: what a jump of the wall clock, or a queue that only dedicated workers can take, needs."""
        self._endings.sum_up()
        self._set_alarm(None)
        self.kick()
        if self._open and self._ledger.counts[RunState.QUEUED] and self._workforce.room("shared"):
            self._workforce.want_dedicated()

    def _claimed(self, isolation: Isolation, asked: int, leases: list[Lease]) -> None:
        self._claiming[isolation] -= asked
        if not self._open:
            self._give_back(leases)
            return
        for lease in leases:
            self._place(lease)
        self.kick()

    def _place(self, lease: Lease) -> None:
        """Start the attempt in the worker of its isolation that has the most room."""
        options = self._workforce.catalogue.jobs.get(lease.spec.job)
        if options is None:
            self._finish([(lease, _unstarted(lease, "unknown_job", _UNKNOWN_JOB.format(lease.spec.job)))])
        elif options.memory_limit_mb is not None and lease.spec.isolation == "shared":
            # Queued before its job got the limit.
            self._give_back([lease], "process")
        elif worker := _fit(self._workforce.roomiest(lease.spec.isolation), options):
            self._attempts.start(lease, options, worker)
            self._endings.of_start(lease)
        else:
            # The worker that had the room is gone since; the next one that is ready takes the lease.
            self._homeless.append(lease)
        if lease.spec.isolation == "process":
            self._workforce.want_dedicated()

    def _place_homeless(self) -> None:
        for _ in range(len(self._homeless)):
            self._place(self._homeless.popleft())

    def _give_back(self, leases: Iterable[Lease], to: Isolation | None = None) -> None:
        self._retry([Again(lease, "interrupted", _UNSTARTED, interrupted=True, isolation=to) for lease in leases])

    def _set_alarm(self, due: float | None) -> None:
        """Kick when the next scheduled or retrying run is due."""
        if due == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        if due is not None:
            self._alarm = asyncio.get_running_loop().call_later(max(0.0, due - time.time()), self.kick)

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
            self._commits.call(partial(self._ledger.log, chunks), partial(self._logged, chunks))
        if ended:
            self._settle([_facts(attempt, outcome) for attempt, outcome in ended])
            self.kick()

    def lost(self, worker: Worker, problem: str, *, stuck: bool = False) -> None:
        """Settle what a worker that is gone, or stuck on its way, had in hand."""
        attempts = self._attempts.of(worker)
        killed = any(attempt.rung is Rung.KILLED for attempt in attempts)
        for attempt in attempts:
            self._attempts.end(attempt)
        self._settle([_facts(attempt, None, problem, bystander=killed, stuck=stuck) for attempt in attempts])

    def cancel(self, run_id: str, *, force: bool) -> None:
        """An operator's wish, already in the ledger, for a run that is active."""
        if attempt := self._attempts.get(run_id):
            attempt.cancel_asked = True
            self._attempts.ask(attempt)
            if force:
                self._attempts.cut(attempt, Cause.CANCELLED)
        for lease in [lease for lease in self._homeless if lease.run_id == run_id]:
            self._homeless.remove(lease)
            self._finish([(lease, _unstarted(lease, "cancelled", "cancelled before it started"))])

    # -- settling

    def _settle(self, ended: Sequence[Ended]) -> None:
        finished: list[tuple[Lease, Result]] = []
        again: list[Again] = []
        budget = self._workforce.settings.interruption_budget
        for facts in ended:
            verdict = judge(facts, budget=budget, share=random.random())  # noqa: S311 (jitter)
            if isinstance(verdict, Again):
                again.append(verdict)
            else:
                finished.append((facts.lease, verdict))
        if finished:
            self._finish(finished)
        if again:
            self._retry(again)

    def _finish(self, results: list[tuple[Lease, Result]]) -> None:
        self._commits.call(partial(self._ledger.finish, results), partial(self._finished, results))

    def _finished(self, results: list[tuple[Lease, Result]], written: list[bool]) -> None:
        self._ended()
        self._bell.ring(each for lease, _ in results for each in (lease.run_id, lease.spec.parent_run_id) if each)
        for (lease, result), was_written in zip(results, written, strict=True):
            self._endings.of_run(lease, result, was_written)
        self.kick()

    def _retry(self, again: list[Again]) -> None:
        if again:
            self._commits.call(partial(self._ledger.retry, again), partial(self._retried, again))

    def _retried(self, again: list[Again], _written: list[bool]) -> None:
        for each in again:
            self._endings.of_attempt(each)
        self._bell.ring(each.lease.run_id for each in again)
        if any(each.isolation == "process" for each in again):
            self._workforce.want_dedicated()
        self.kick()

    def _logged(self, chunks: list[LogChunk], _written: None) -> None:
        self._bell.ring(chunk.run_id for chunk in chunks)


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
