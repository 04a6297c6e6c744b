"""The watch over the memory of attempts that have a worker to themselves."""

import asyncio
import logging
import time

from craft_easy_jobd.accounting import Account
from craft_easy_jobd.attempts import Attempt, Attempts
from craft_easy_jobd.events import Event
from craft_easy_jobd.footprint import Footprint
from craft_easy_jobd.stopping import Cause

logger = logging.getLogger("craft_easy_jobd.workers")

LOOK_SECONDS = 0.25
# Looks may take this share of a processor: a job with thousands of processes is looked at less often.
_SHARE = 0.05


class MemoryWatch:
    """Looks several times a second at what attempts use, and kills those that use more than their job may.

    In a cgroup the kernel holds the limit, and this only sees how much was used. There is nothing to do while no
    attempt has a worker to itself.
    """

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._attempts.any_alone.wait()
            watched = self._attempts.alone()
            accounts = [(attempt.worker.account, attempt.options.memory_limit_bytes) for attempt in watched]
            footprints, seconds = await asyncio.to_thread(_look, accounts)
            for attempt, footprint in zip(watched, footprints, strict=True):
                # It may have ended meanwhile, and what was seen be that of the next one.
                if self._attempts.get(attempt.lease.run_id, attempt.lease.token) is attempt:
                    self._saw(attempt, footprint)
            await asyncio.sleep(max(LOOK_SECONDS, seconds / _SHARE))

    def _saw(self, attempt: Attempt, footprint: Footprint) -> None:
        attempt.worker.account.saw(footprint)
        limit = attempt.options.memory_limit_bytes
        if limit is not None and footprint.memory_bytes > limit and not attempt.worker.killed:
            facts = {"event": Event.MEMORY_EXCEEDED, "bytes": footprint.memory_bytes, "limit": limit}
            logger.warning("a run uses more memory than its job may", extra={**attempt.lease.names, **facts})
            self._attempts.kill(attempt, Cause.OUT_OF_MEMORY)


def _look(accounts: list[tuple[Account, int | None]]) -> tuple[list[Footprint], float]:
    """What each uses, and the processor time that it took to see it."""
    started = time.thread_time()
    footprints = [account.look(enough=limit) for account, limit in accounts]
    return footprints, time.thread_time() - started
