"""Calls to the ledger that must not be lost: those that a full disk refuses are made again, in their order."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from craft_easy_jobd.errors import LedgerError
from craft_easy_jobd.ledger import Ledger
from craft_easy_jobd.trouble import Trouble

logger = logging.getLogger("craft_easy_jobd.ledger")

T = TypeVar("T")

# A stop waits so long for a disk that is full.
_SETTLE_SECONDS = 10.0


class Commits:
    """What was asked of the ledger and is not durable yet.

    `failed` is called with the error when the ledger can no longer be written, or what follows a commit fails.
    """

    def __init__(self, ledger: Ledger, failed: Callable[[BaseException], None]) -> None:
        self._ledger = ledger
        self._failed = failed
        self._trouble = Trouble(logger)
        self._under_way: set[asyncio.Future[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._put_off: list[tuple[Callable[[], asyncio.Future[Any]], Callable[[Any], None]]] = []

    @property
    def problem(self) -> str | None:
        """What keeps calls from being written, None when nothing does."""
        return self._trouble.problem and f"ledger: {self._trouble.problem}"

    def call(self, call: Callable[[], "asyncio.Future[T]"], then: Callable[[T], None]) -> None:
        """Call the ledger now, and `then` with its answer after the commit."""
        if self._put_off:
            self._put_off.append((call, then))
            return
        future = call()
        self._under_way.add(future)
        future.add_done_callback(partial(self._answered, call, then))

    def once(self, future: "asyncio.Future[T]", then: Callable[["asyncio.Future[T]"], None]) -> None:
        """As `call`, for a call that its caller may make again: `then` is told what became of it, an error too."""
        self._under_way.add(future)
        future.add_done_callback(partial(self._tell, then))

    async def settled(self) -> None:
        """Return when all is durable.

        Raises:
            LedgerError: it could not be for so long that the next start has to recover.
        """
        loop = asyncio.get_running_loop()
        patience = loop.time() + _SETTLE_SECONDS
        while self._under_way or self._put_off:
            if loop.time() > patience:
                raise LedgerError(f"{self.problem}; runs that ended meanwhile are started again by the next daemon")
            # Short: what is put off has no future to wait for.
            await asyncio.sleep(0.01)

    def _answered(
        self, call: Callable[[], "asyncio.Future[T]"], then: Callable[[T], None], future: "asyncio.Future[T]"
    ) -> None:
        self._under_way.discard(future)
        if future.cancelled():
            return
        try:
            answer = future.result()
        except LedgerError as error:
            self._refused(error, call, then)
            return
        self._trouble.clear()
        try:
            then(answer)
        except Exception as error:
            self._failed(error)

    def _tell(self, then: Callable[["asyncio.Future[T]"], None], future: "asyncio.Future[T]") -> None:
        self._under_way.discard(future)
        if not future.cancelled() and isinstance(error := future.exception(), LedgerError):
            self._meet(error)
        try:
            then(future)
        except Exception as defect:
            self._failed(defect)

    def _refused(self, error: LedgerError, call: Callable[[], "asyncio.Future[T]"], then: Callable[[T], None]) -> None:
        if self._ledger.broken is not None:
            self._failed(error)
            return
        self._meet(error)
        self._put_off.append((call, then))

    def _meet(self, error: LedgerError) -> None:
        if self._pause is None:
            self._trouble.meet(error)
            self._pause = asyncio.get_running_loop().call_later(self._trouble.delay, self._call_again)

    def _call_again(self) -> None:
        self._pause = None
        put_off, self._put_off = self._put_off, []
        if not put_off:
            # Whose callers may call again, and will hear it themselves.
            self._trouble.clear()
        for call, then in put_off:
            self.call(call, then)
