"""What keeps a part from its work for now, such as a full disk: told once, tried again, told when it is over."""

import logging

from craft_easy_jobd.events import Event

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 5.0


class Trouble:
    """The state of being kept from work.

    Attributes:
        problem: what is in the way, None while nothing is.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.problem: str | None = None
        self._logger = logger
        self._times = 0

    @property
    def delay(self) -> float:
        """Seconds until it is worth another try: 0.2, doubling to 5."""
        return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._times - 1, 10))

    def meet(self, error: Exception) -> None:
        """It is in the way, for the first time or still."""
        self._times += 1
        if self.problem != str(error):
            self.problem = str(error)
            self._logger.error("cannot go on for now, trying again", extra={"event": Event.TROUBLE, "problem": error})

    def clear(self) -> None:
        """Nothing is in the way any more."""
        if self.problem is not None:
            self._logger.warning("going on", extra={"event": Event.TROUBLE_OVER, "tries": self._times})
        self.problem = None
        self._times = 0
