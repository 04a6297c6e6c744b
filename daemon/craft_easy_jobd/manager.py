"""What the service manager is told of the daemon, from its start to its end: READY, STATUS, WATCHDOG and the rest."""

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from craft_easy_jobd.events import Event
from craft_easy_jobd.notify import notify
from craft_easy_jobd.states import ACTIVE, RunState
from craft_easy_jobd.status import DaemonState

logger = logging.getLogger("craft_easy_jobd")

_BEAT_SECONDS = 1.0
# A daemon that hangs while it starts or stops is given up on so long after its last sign of life.
_EXTENSION_SECONDS = 15.0
# The manager reads 4 KiB a datagram.
_STATUS_CHARACTERS = 500


class Vital(NamedTuple):
    """Work that the watchdog is told of: for how many seconds it has stood still, and how long it may."""

    what: str
    stalled_seconds: Callable[[], float]
    limit: float


class Manager:
    """Tells the service manager; without one it does nothing. Notices that it cannot take at once are sent again.

    Args:
        describe: what goes on, in a line.
        vitals: what must not stand still for the watchdog to be fed, and for a start or stop to be given more time.
    """

    def __init__(self, *, describe: Callable[[], str], vitals: Sequence[Vital]) -> None:
        self._describe = describe
        self._vitals = vitals
        self._watchdog = watchdog_seconds(os.environ, os.getpid())
        self._owed: deque[tuple[str, ...]] = deque()
        self._up = False
        self._stopping = False
        self._patience_ends = 0.0
        self._ailment: str | None = None
        self._fed_at = self._status_at = -math.inf
        self._status = ""

    async def run(self) -> None:
        """Keep the manager informed, until cancelled. On the loop it serves: a thread would vouch for a dead one."""
        # Half of the watchdog's time is asked for; a third leaves room for a beat that comes late.
        pause = min(_BEAT_SECONDS, self._watchdog / 3) if self._watchdog else _BEAT_SECONDS
        while True:
            self._send()
            await asyncio.sleep(pause)

    def allow(self, seconds: float) -> None:
        """What is under way may take so long: until then, more time is asked for to start, or to stop."""
        self._patience_ends = time.monotonic() + seconds
        self._send()

    def ready(self) -> None:
        """It is up; or a reload has ended."""
        if not self._stopping:
            self._up = True
            self._owe("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        if not self._stopping:
            # In one datagram: systemd 253 and later wait for a READY that is younger than this time.
            self._owe("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, *, within: float) -> None:
        """It goes down, by its own limits within so many seconds. Once; what is said twice is not told."""
        if not self._stopping:
            self._stopping, self._up = True, False
            self._patience_ends = time.monotonic() + within
            self._owe("STOPPING=1")

    def _owe(self, *lines: str) -> None:
        self._owed.append(lines)
        self._send()

    def _send(self) -> None:
        # One datagram each: the manager reads the lines of one in an order of its own.
        while self._owed:
            if not notify(*self._owed[0]):
                return
            self._owed.popleft()
        now = time.monotonic()
        lines = [*self._life(now), *self._news(now)]
        if lines and not notify(*lines):
            # All of it at the next beat.
            self._fed_at = self._status_at = -math.inf
            self._status = ""

    def _life(self, now: float) -> list[str]:
        """Signs of life, while there is life."""
        self._examine()
        if self._ailment is not None:
            return []
        lines = []
        if self._watchdog and now - self._fed_at >= self._watchdog / 4:
            self._fed_at = now
            lines.append("WATCHDOG=1")
        if not self._up and now < self._patience_ends:
            more = min(_EXTENSION_SECONDS, self._patience_ends - now)
            lines.append(f"EXTEND_TIMEOUT_USEC={int(more * 1_000_000)}")
        return lines

    def _examine(self) -> None:
        found = ailment(self._vitals)
        if found and not self._ailment:
            logger.error(
                "not healthy, the watchdog is no longer fed", extra={"event": Event.UNHEALTHY, "problem": found}
            )
        elif self._ailment and not found:
            logger.warning("healthy again", extra={"problem": self._ailment})
        self._ailment = found

    def _news(self, now: float) -> list[str]:
        status = self._described()
        if status == self._status or now - self._status_at < _BEAT_SECONDS:
            return []
        self._status, self._status_at = status, now
        return [f"STATUS={status}"]

    def _described(self) -> str:
        text = f"{self._describe()}; not healthy: {self._ailment}" if self._ailment else self._describe()
        return " ".join(text.split())[:_STATUS_CHARACTERS]


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    """How often the manager wants to hear of this process at least; None when it does not."""
    usec = environment.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) == 0 or environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(usec) / 1_000_000


def ailment(vitals: Iterable[Vital]) -> str | None:
    """What has stood still for too long, None when nothing has."""
    for what, stalled_seconds, limit in vitals:
        if (seconds := stalled_seconds()) > limit:
            return f"{what} for {seconds:.0f} s" if math.isfinite(seconds) else what
    return None


def summary(state: DaemonState, counts: Mapping[RunState, int], workers: int, problems: Iterable[str]) -> str:
    """What goes on, as `systemctl status` shows it."""
    running = sum(counts[each] for each in ACTIVE)
    text = f"{running} running, {counts[RunState.QUEUED]} queued; {workers} worker{'' if workers == 1 else 's'}"
    return "; ".join([text if state == "running" else f"{state}: {text}", *problems])
