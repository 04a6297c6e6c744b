"""What the daemon does once a second, whatever else happens."""

import asyncio
import time

from craft_easy_jobd.dispatcher import Dispatcher
from craft_easy_jobd.sqlite_ledger import SqliteLedger
from craft_easy_jobd.workforce import Workforce

_SECONDS = 1.0


class Duties:
    """Looks at what no event tells of."""

    def __init__(self, ledger: SqliteLedger, dispatcher: Dispatcher, workforce: Workforce) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._workforce = workforce
        self._done_at: float | None = None

    @property
    def stalled_seconds(self) -> float:
        """For how long they have not been done, while they should be."""
        return 0.0 if self._done_at is None else time.monotonic() - self._done_at

    async def run(self) -> None:
        """Do them, until cancelled.

        Raises:
            LedgerError: it can no longer be written.
        """
        try:
            while True:
                self._done_at = time.monotonic()
                await asyncio.sleep(_SECONDS)
                if self._ledger.broken is not None:
                    raise self._ledger.broken
                self._dispatcher.look_again()
                await self._workforce.tenancy.refresh()
        finally:
            self._done_at = None
