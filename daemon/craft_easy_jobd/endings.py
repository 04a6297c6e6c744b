"""The daemon's log of what ended: run by run, and in a storm of them how many more there were."""

import logging
from collections import Counter

from craft_easy_jobd.events import Event
from craft_easy_jobd.ledger import Again, Lease, Result
from craft_easy_jobd.states import RunState

logger = logging.getLogger("craft_easy_jobd.runs")

# A line costs as much as half a run; each run has its JobResult, and the log is read by people.
LINES = 100


class Endings:
    """Names up to LINES endings of each kind between two calls of `sum_up`, and counts the rest.

    Also what has started and not ended until then: of the many short runs, the ending tells enough.
    """

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._started: dict[str, Lease] = {}

    def of_start(self, lease: Lease) -> None:
        """An attempt was given to a worker."""
        if len(self._started) < LINES:
            self._started[lease.run_id] = lease

    def of_run(self, lease: Lease, result: Result, written: bool) -> None:
        """An attempt was the last one of its run; not `written`: the ledger refused to hear of it."""
        self._started.pop(lease.run_id, None)
        if not written:
            event, text, level = (
                Event.OUTCOME_REFUSED,
                "late outcome refused: the run was given away since",
                logging.WARNING,
            )
        elif result.state is RunState.COMPLETED:
            event, text, level = Event.RUN_COMPLETED, "run completed", logging.INFO
        else:
            event = Event.RUN_TIMED_OUT if result.reason == "timed_out" else Event.RUN_FAILED
            text, level = "run failed", logging.WARNING
        if self._has_room(text, level):
            seconds = round(result.completed_at - result.started_at, 3)
            facts = {"reason": result.reason, "error": result.error, "seconds": seconds, "worker": result.worker}
            logger.log(level, text, extra={"event": event, **lease.names, **facts})

    def of_attempt(self, again: Again) -> None:
        """An attempt ended, another one follows."""
        self._started.pop(again.lease.run_id, None)
        text, level = "attempt ended, the run goes on", logging.WARNING
        if self._has_room(text, level):
            facts = {"reason": again.reason, "error": again.error, "delay": again.delay_seconds}
            logger.log(level, text, extra={"event": Event.RUN_GOES_ON, **again.lease.names, **facts})

    def sum_up(self) -> None:
        """Tell what goes on, and how many were not named since the last time; to be called once a second."""
        for lease in self._started.values():
            logger.info("run started", extra={"event": Event.RUN_STARTED, **lease.names})
        self._started.clear()
        for text, times in self._told.items():
            if times > LINES:
                logger.info("%s: %d more in this second, not named", text, times - LINES)
        self._told.clear()

    def _has_room(self, text: str, level: int) -> bool:
        if not logger.isEnabledFor(level):
            return False
        self._told[text] += 1
        return self._told[text] <= LINES
