"""The daemon's log of what ended: run by run, and in a storm of them how many more there were."""

import logging
from collections import Counter
from typing import Any

from craft_easy_jobd.ledger import Again, Lease, Result
from craft_easy_jobd.states import RunState

logger = logging.getLogger("craft_easy_jobd.runs")

# A line costs as much as half a run; each run has its JobResult, and the log is read by people.
LINES = 100


class Endings:
    """Names up to LINES endings of each kind between two calls of `sum_up`, and counts the rest."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()

    def of_run(self, lease: Lease, result: Result, written: bool) -> None:
        """An attempt was the last one of its run; not `written`: the ledger refused to hear of it."""
        if not written:
            text, level = "late outcome refused: the run was given away since", logging.WARNING
        elif result.state is RunState.COMPLETED:
            text, level = "run completed", logging.INFO
        else:
            text, level = "run failed", logging.WARNING
        if self._has_room(text, level):
            seconds = round(result.completed_at - result.started_at, 3)
            _tell(level, text, lease, reason=result.reason, error=result.error, seconds=seconds)

    def of_attempt(self, again: Again) -> None:
        """An attempt ended, another one follows."""
        text, level = "attempt ended, the run goes on", logging.WARNING
        if self._has_room(text, level):
            _tell(level, text, again.lease, reason=again.reason, error=again.error, delay=again.delay_seconds)

    def sum_up(self) -> None:
        """Tell how many were not named since the last time; to be called once a second."""
        for text, times in self._told.items():
            if times > LINES:
                logger.info("%s: %d more in this second, not named", text, times - LINES)
        self._told.clear()

    def _has_room(self, text: str, level: int) -> bool:
        if not logger.isEnabledFor(level):
            return False
        self._told[text] += 1
        return self._told[text] <= LINES


def _tell(level: int, text: str, lease: Lease, **facts: Any) -> None:
    names = {"run_id": lease.run_id, "job": lease.spec.job, "tenant": lease.spec.tenant_id, "attempt": lease.attempt}
    logger.log(level, text, extra={**names, **facts})
