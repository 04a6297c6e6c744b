"""Power cuts: a daemon whose file system loses everything that was not synced, again and again."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer

from tests.faults.book import FORGIVING, Book
from tests.faults.mounts import Disk
from tests.faults.scale import chance
from tests.support.daemon import DaemonProcess
from tests.support.waiting import wait_until

_LATEST_SECONDS = 0.15


class PowerCuts:
    """One root on one disk that lives through all cuts. The notes lie elsewhere: they tell what really happened."""

    def __init__(self, number: int, disk: Disk, notes: Path, env: Mapping[str, str] | None = None) -> None:
        self.chance = chance(f"power cuts, lane {number}")
        self.disk = disk
        self._cut_at = 0.0
        self.book = Book(disk.folder / "var", notes)
        self.daemon = DaemonProcess(self.book.root, *FORGIVING, env={**(env or {}), **self.book.env})

    def cycle(self) -> list[str]:
        """Ask until the power is cut; what is torn after it, before a daemon has had the chance to mend it."""
        self.daemon.launch()
        wait_until(lambda: self.daemon.ended or "READY=1" in self.daemon.notices)
        if self.daemon.ended:
            return [f"it did not come up after the cut\n{self.daemon.log}"]
        dark = Event()
        cut = Timer(self.chance.uniform(0, _LATEST_SECONDS), self._cut, (dark,))
        cut.start()
        while not dark.is_set():
            self._ask(dark)
        cut.join()
        self._die()
        self.book.dark.append((self._cut_at, time.monotonic()))
        self.disk.unmount()
        self.disk.mount()
        for draft in self.book.incoming.parent.glob("draft-*"):
            draft.unlink()
        return list(self.book.torn())

    def settle(self, *, within: float = 30.0) -> list[str]:
        return self.book.settle(self.daemon, within=within)

    def close(self) -> None:
        self.daemon.close()

    def _cut(self, dark: Event) -> None:
        self._cut_at = time.monotonic()
        dark.set()
        self.disk.cut_power()

    def _ask(self, dark: Event) -> None:
        """Only an answer that was read before the cut began binds: what a dead disk says may be a lie."""
        owed = dict(self.book.owed)
        with suppress(OSError):
            if self.chance.random() < 0.5:
                self.book.drop(self.chance.choice(["count", "flaky"]))
            else:
                self.book.submit(self.daemon, self.chance.choice(["count", "fails"]))
            if not dark.is_set():
                self.book.glance()
        if dark.is_set():
            self.book.owed = owed

    def _die(self) -> None:
        for process in self.daemon.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.daemon.wait()
        wait_until(lambda: not self.daemon.processes())
