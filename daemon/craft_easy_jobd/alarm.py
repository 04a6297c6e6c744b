"""Rings at a time of the wall clock."""

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """Calls `ring` when its time has come and not before; the loop's timers may be early, for they have a clock apart.

    A wall clock that is set has to be noticed by who set the alarm: `set(None)` and `set(due)` look at it again.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float | None) -> None:
        """Ring at `due`, Unix seconds, and at no other time; None: not at all. It rings once for the same time."""
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        if due is not None:
            self._wait(due)

    def _wait(self, due: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.time()), self._rings, due)

    def _rings(self, due: float) -> None:
        if time.time() < due:
            self._wait(due)
        else:
            self._ring()
