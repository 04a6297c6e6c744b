"""How much of a storm of log entries is kept."""

import time

# So many seconds' worth may come at once.
BURST_SECONDS = 10


class Thinning:
    """Lets `rate` entries a second through in the long run, BURST_SECONDS' worth at once, and counts the rest.

    Attributes:
        left_out: entries that did not come through since `told`.
    """

    def __init__(self, rate: int) -> None:
        self.left_out = 0
        self._rate = rate
        self._room = float(rate * BURST_SECONDS)
        self._filled = time.monotonic()

    def passes(self) -> bool:
        """Whether the next entry comes through."""
        if self._room < 1:
            self._fill()
        if self._room < 1:
            self.left_out += 1
            return False
        self._room -= 1
        return True

    def told(self) -> int:
        """How many were left out; counts from zero after it."""
        left_out, self.left_out = self.left_out, 0
        return left_out

    def _fill(self) -> None:
        # Only when the room is used up: a clock that is read for each entry would cost as much as the rest.
        now = time.monotonic()
        self._room = min(self._rate * BURST_SECONDS, self._room + (now - self._filled) * self._rate)
        self._filled = now
