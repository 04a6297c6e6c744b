"""Fair turns between tenants: whoever has little waiting does not stand behind whoever has much."""

from collections.abc import Iterable

_KEPT = 10_000


class Turns:
    """Numbers the waiting runs of each tenant; the lowest number goes first.

    A run's turn is one after its tenant's last one, and at least the turn that is being served: with a thousand runs
    of one tenant waiting, the first run of another one is next. Priorities are kept apart. Pure bookkeeping.
    """

    def __init__(self, live: Iterable[tuple[int, str | None, int, int, int | None]] = ()) -> None:
        """Go on where an earlier life was.

        Args:
            live: the first and the last turn of each (priority, tenant) with runs that have not ended, and the last
                one of these that began.
        """
        self._last: dict[tuple[int, str | None], int] = {}
        self._served: dict[int, int] = {}
        first: dict[int, int] = {}
        for priority, tenant, lowest, highest, begun in live:
            self._last[priority, tenant] = highest
            first[priority] = min(lowest, first.get(priority, lowest))
            if begun is not None:
                self._served[priority] = max(begun, self._served.get(priority, begun))
        self._served = first | self._served

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
