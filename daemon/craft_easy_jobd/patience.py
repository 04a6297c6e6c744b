"""Which files are to be left alone for now, and since when."""

import os
import time
from typing import NamedTuple, TypeAlias

MAX_NOTES = 10_000

Mark: TypeAlias = tuple[int, int, int, int, int]


def mark(status: os.stat_result) -> Mark:
    """What differs when a file was replaced, written to or changed in its owner, mode or links."""
    return status.st_ino, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Note(NamedTuple):
    mark: Mark
    since: float


class Patience:
    """Notes of files that are left alone until they have stood still for `seconds`, which may be changed.

    Time is monotonic, so that a jump of the clock neither shortens the wait nor makes it endless. Each look through
    the folder makes its notes anew; those of files that are gone end with it. There are at most MAX_NOTES: what finds
    no room waits until others are gone.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._notes: dict[str, _Note] = {}
        self._taken: dict[str, _Note] = {}

    def begin(self) -> None:
        """A look through the folder begins."""
        self._taken = {}

    def end(self) -> None:
        """It has come to the end of the folder."""
        self._notes, self._taken = self._taken, {}

    def waiting(self, name: str, now: Mark) -> bool:
        """True while this file need not be looked at: it is as it was noted, and its time has not passed."""
        note = self._notes.get(name)
        if note is None or note.mark != now or time.monotonic() >= note.since + self.seconds:
            return False
        self._taken[name] = note
        return True

    def exhausted(self, name: str, now: Mark) -> bool:
        """True when a file that is not waiting was noted as it is now: it has stood still for its time."""
        note = self._notes.get(name)
        return note is not None and note.mark == now

    def note(self, name: str, now: Mark) -> None:
        """Leave this file alone from now on, unless it changes."""
        if len(self._taken) < MAX_NOTES:
            self._taken[name] = _Note(now, time.monotonic())

    def due_in(self) -> float | None:
        """Seconds until the first of them is to be looked at again, None when there is none."""
        if not self._notes:
            return None
        return max(0.0, min(note.since for note in self._notes.values()) + self.seconds - time.monotonic())
