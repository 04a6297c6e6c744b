"""Puts into the ledger what follows from attempts that are over, and tells of it when it is durable."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from craft_easy_jobd.bell import Bell
from craft_easy_jobd.commits import Commits
from craft_easy_jobd.endings import Endings
from craft_easy_jobd.ledger import Again, Lease, Ledger, LogChunk, Result
from craft_easy_jobd.verdicts import Ended, judge
from craft_easy_jobd.workforce import Workforce


class Settled(Protocol):
    """Called after a commit. `apart`: runs went back to the queue that need a worker of their own."""

    def __call__(self, *, apart: bool) -> None: ...


class Settling:
    """Ends runs and puts them back.

    Args:
        ended: called after a commit that ended runs: there is something to publish.
    """

    def __init__(
        self,
        ledger: Ledger,
        commits: Commits,
        bell: Bell,
        workforce: Workforce,
        *,
        ended: Callable[[], None],
        settled: Settled,
    ) -> None:
        self._ledger = ledger
        self._commits = commits
        self._bell = bell
        self._workforce = workforce
        self._ended = ended
        self._settled = settled
        self._endings = Endings()

    def started(self, lease: Lease) -> None:
        """An attempt was given to a worker."""
        self._endings.of_start(lease)

    def settle(self, ended: Sequence[Ended]) -> None:
        """Decide of each what follows."""
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
            self.finish(finished)
        self.again(again)

    def finish(self, results: list[tuple[Lease, Result]]) -> None:
        """End runs."""
        self._commits.call(partial(self._ledger.finish, results), partial(self._finished, results))

    def again(self, again: list[Again]) -> None:
        """Put runs back."""
        if again:
            self._commits.call(partial(self._ledger.retry, again), partial(self._retried, again))

    def log(self, chunks: list[LogChunk]) -> None:
        """Keep what attempts logged."""
        self._commits.call(partial(self._ledger.log, chunks), partial(self._logged, chunks))

    def sum_up(self) -> None:
        """Once a second: have the daemon's log say what goes on, and how many endings it left out."""
        self._endings.sum_up()

    def _finished(self, results: list[tuple[Lease, Result]], written: list[bool]) -> None:
        self._ended()
        self._bell.ring(each for lease, _ in results for each in (lease.run_id, lease.spec.parent_run_id) if each)
        for (lease, result), was_written in zip(results, written, strict=True):
            self._endings.of_run(lease, result, was_written)
        self._settled(apart=False)

    def _retried(self, again: list[Again], _written: list[bool]) -> None:
        for each in again:
            self._endings.of_attempt(each)
        self._bell.ring(each.lease.run_id for each in again)
        self._settled(apart=any(each.isolation == "process" for each in again))

    def _logged(self, chunks: list[LogChunk], _written: None) -> None:
        self._bell.ring(chunk.run_id for chunk in chunks)
