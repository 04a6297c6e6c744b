"""Fair turns between tenants: whoever has little waiting does not stand behind whoever has much."""

from collections.abc import Iterable

_KEPT = 10_000


class Turns:
    """Numbers the waiting runs of each tenant; the lowest number goes first.

    A run's turn is one after its tenant's last one, and at least the turn that is being served: with a thousand runs
    of one tenant waiting, the first run of another one is next. Priorities are kept apart. Pure bookkeeping.
    """

    def __init__(self, waiting: Iterable[tuple[int, str | None, int]] = ()) -> None:
        """Args: waiting: the last turn of each (priority, tenant) that has runs in the queue, or coming back to it."""
        self._last = {(priority, tenant): turn for priority, tenant, turn in waiting}
        self._served: dict[int, int] = {}

    def next(self, priority: int, tenant: str | None) -> int:
        """The turn of a run that is being queued now."""
        turn = max(self._last.get((priority, tenant), -1) + 1, self._served.get(priority, 0))
        self._last[priority, tenant] = turn
        return turn

    def served(self, priority: int, turn: int) -> None:
        """A run with this turn was claimed."""
        self._served[priority] = max(self._served.get(priority, 0), turn)
        if len(self._last) > _KEPT:
            self._forget()

    def _forget(self) -> None:
        """Tenants whose turns have all passed are as new ones."""
        self._last = {key: turn for key, turn in self._last.items() if turn >= self._served.get(key[0], 0)}
