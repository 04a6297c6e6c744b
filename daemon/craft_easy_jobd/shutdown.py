"""The daemon's way down: what each step of the stop ladder does to the attempts."""

import asyncio
import logging

from craft_easy_jobd.attempts import Attempts
from craft_easy_jobd.dispatcher import Dispatcher
from craft_easy_jobd.events import Event
from craft_easy_jobd.manager import Manager
from craft_easy_jobd.stopping import Cause, Level, next_level
from craft_easy_jobd.workforce import Workforce

logger = logging.getLogger("craft_easy_jobd")

# For all that follows the end of the attempts: workers that die, commits, results, on a slow disk too.
_SETTLE_SECONDS = 90.0


class Shutdown:
    """Goes down the ladder, one step a call; `asked` is set by the first.

    After the `drain_timeout` of the settings in force a drain becomes a cut by itself.
    """

    def __init__(self, dispatcher: Dispatcher, attempts: Attempts, manager: Manager, workforce: Workforce) -> None:
        self.level = Level.SERVING
        self.asked = asyncio.Event()
        self._dispatcher = dispatcher
        self._attempts = attempts
        self._manager = manager
        self._workforce = workforce

    def drain(self) -> None:
        """Go down to the first step; nothing when that, or a later one, was asked for before."""
        self._descend(Level.DRAIN)

    def step(self) -> None:
        """A signal, or a client's wish: drain, cut, now."""
        self._descend(next_level(self.level))

    def _descend(self, level: Level) -> None:
        if level <= self.level:
            return
        self.level = level
        facts = {"event": Event.STOPPING, "step": level.name.lower(), "attempts": len(self._attempts)}
        logger.warning("stopping", extra=facts)
        match level:
            case Level.DRAIN:
                self._drain()
            case Level.CUT:
                for attempt in list(self._attempts):
                    self._attempts.cut(attempt, Cause.INTERRUPTED)
            case Level.NOW:
                for attempt in list(self._attempts):
                    self._attempts.kill(attempt, Cause.INTERRUPTED)
        self.asked.set()

    def _drain(self) -> None:
        drain_timeout = self._workforce.settings.drain_timeout
        grace = max((attempt.options.grace_seconds for attempt in self._attempts), default=0.0)
        self._manager.stopping(within=drain_timeout + grace + _SETTLE_SECONDS)
        self._dispatcher.close()
        for attempt in list(self._attempts):
            self._attempts.ask(attempt)
        asyncio.get_running_loop().call_later(drain_timeout, self._descend, Level.CUT)
