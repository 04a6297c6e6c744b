"""Tells who waits for a run that something about it was committed. A hint: look again, the ledger has the truth."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Bell:
    """Events by run_id. Ringing costs nothing for runs that nobody listens to."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def ring(self, run_ids: Iterable[str]) -> None:
        if self._listeners:
            for run_id in run_ids:
                for event in self._listeners.get(run_id, ()):
                    event.set()

    def ring_all(self) -> None:
        """Wake everybody: the daemon is closing."""
        self.ring(tuple(self._listeners))

    @contextmanager
    def listen(self, run_id: str) -> Iterator[asyncio.Event]:
        """Listen first, look at the ledger second, wait for the event third, and nothing is missed.

        The listener clears the event before it looks again.
        """
        event = asyncio.Event()
        self._listeners[run_id].add(event)
        try:
            yield event
        finally:
            self._listeners[run_id].discard(event)
            if not self._listeners[run_id]:
                del self._listeners[run_id]
