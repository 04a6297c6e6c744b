"""What a worker uses with all that its jobs started, and what it may: by its cgroup, or added up over its processes."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from craft_easy_jobd.footprint import Footprint, tree_footprint
from craft_easy_jobd.status import AccountingKind

# The kernel's count of processes that it killed for want of memory.
VMSTAT = Path("/proc/vmstat")

OomKill = Literal["limit", "machine"]


class Accounting(NamedTuple):
    """How it is found out, and in a few words why not otherwise."""

    kind: AccountingKind
    note: str


class Used(NamedTuple):
    """By one attempt: seconds of CPU time, and the most memory at a time in bytes; None when it was not seen."""

    cpu_seconds: float | None = None
    peak_bytes: int | None = None


NOT_SEEN = Used()


class Account(Protocol):
    """Of one worker. Calls are for the loop and take some 0.1 ms, longer where there are many processes below it."""

    def begin(self, limit_bytes: int | None) -> None:
        """An attempt starts that has the worker to itself, under this limit."""

    def look(self, *, enough: int | None = None, at_most: int | None = None) -> Footprint:
        """What is used now; zeros when it is gone. Harmless in a thread; how long it takes: see `tree_footprint`."""

    def left_over(self) -> int:
        """Bytes used now beyond what was used when its first attempt began: what those before left in the worker."""

    def saw(self, footprint: Footprint) -> None:
        """A look while the attempt was under way."""

    def end(self) -> Used:
        """The attempt is over; harmless when all that it used is gone."""

    def close(self) -> None:
        """The worker is about to go: what is to be known of it must be read now. Twice is harmless."""

    def oom_kill(self) -> OomKill | None:
        """Why the kernel killed here for want of memory since the last attempt began, None when it did not.

        The limit of the attempt was met, or that of what is around it. To be asked of a worker that SIGKILL ended and
        that nobody here killed.
        """


class TreeAccount:
    """By what was seen of the worker's process tree; the limit is not held here.

    Args:
        pid: of the worker.
        kills: file with the kernel's count of kills for want of memory, wherever it looks for memory.
    """

    def __init__(self, pid: int, kills: Path = VMSTAT) -> None:
        self._pid = pid
        self._kills = kills
        self._kills_before = read_count(kills, "oom_kill")
        self._cpu_seconds = 0.0
        self._at_first: int | None = None
        self._used = NOT_SEEN

    def begin(self, limit_bytes: int | None) -> None:
        self._kills_before = read_count(self._kills, "oom_kill")
        before = self.look()
        self._cpu_seconds = before.cpu_seconds
        self._at_first = before.memory_bytes if self._at_first is None else self._at_first
        self._used = NOT_SEEN

    def look(self, *, enough: int | None = None, at_most: int | None = None) -> Footprint:
        return tree_footprint(self._pid, enough=enough, at_most=at_most)

    def left_over(self) -> int:
        return 0 if self._at_first is None else self.look().memory_bytes - self._at_first

    def saw(self, footprint: Footprint) -> None:
        self._used = Used(
            max(self._used.cpu_seconds or 0.0, footprint.cpu_seconds - self._cpu_seconds),
            max(self._used.peak_bytes or 0, footprint.memory_bytes),
        )

    def end(self) -> Used:
        return self._used

    def close(self) -> None:
        """What was seen last is what is known."""

    def oom_kill(self) -> OomKill | None:
        return "machine" if read_count(self._kills, "oom_kill") > self._kills_before else None


class CgroupAccount:
    """By the worker's cgroup, in which the kernel counts, and holds the limit; it counts files in memory, too.

    Args:
        folder: the cgroup, which has the memory controller.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._limited = self._closed = False
        self._peak: _Peak | None = None
        self._cpu_usec = 0
        self._at_first: int | None = None
        self._events_before = self._events_after = _Events(0, 0)
        self._used = NOT_SEEN

    def begin(self, limit_bytes: int | None) -> None:
        if limit_bytes is not None:
            # Without oom.group, the kernel would choose one process, and the job would see a part of it fail.
            self._set(max=str(limit_bytes), swap="0", group="1")
            self._limited = True
        if self._at_first is None:
            self._at_first = _number(self._folder / "memory.current")
        self._peak = _Peak(self._folder / "memory.peak")
        self._cpu_usec = read_count(self._folder / "cpu.stat", "usage_usec")
        self._events_before = self._events()
        self._used = NOT_SEEN

    def left_over(self) -> int:
        return 0 if self._at_first is None else _number(self._folder / "memory.current") - self._at_first

    def look(self, *, enough: int | None = None, at_most: int | None = None) -> Footprint:
        usec = read_count(self._folder / "cpu.stat", "usage_usec")
        return Footprint(_number(self._folder / "memory.current"), usec / 1e6)

    def saw(self, footprint: Footprint) -> None:
        self._used = self._used._replace(peak_bytes=max(self._used.peak_bytes or 0, footprint.memory_bytes))

    def end(self) -> Used:
        self._take()
        if self._limited:
            self._set(max="max", swap="max", group="0")
            self._limited = False
        return self._used

    def close(self) -> None:
        self._take()
        self._closed = True

    def oom_kill(self) -> OomKill | None:
        if self._events_after.kills <= self._events_before.kills:
            return None
        return "limit" if self._events_after.met > self._events_before.met else "machine"

    def _take(self) -> None:
        """Read what is known now, and of the attempt if one is under way."""
        if self._closed:
            return
        self._events_after = self._events()
        if self._peak is None:
            return
        self.saw(Footprint(self._peak.take(), cpu_seconds=0.0))
        self._peak = None
        usec = read_count(self._folder / "cpu.stat", "usage_usec") - self._cpu_usec
        self._used = self._used._replace(cpu_seconds=max(0, usec) / 1e6)

    def _events(self) -> "_Events":
        events = self._folder / "memory.events"
        return _Events(read_count(events, "oom_kill"), read_count(events, "oom"))

    def _set(self, **values: str) -> None:
        for name, value in values.items():
            # Some kernels count no swap. Where nothing may be set, the watch over the memory holds the limit.
            with suppress(OSError):
                (self._folder / _FILES[name]).write_text(value)


class _Events(NamedTuple):
    """Processes that the kernel killed for want of memory, and how often the limit that was met was this cgroup's."""

    kills: int
    met: int


_FILES = {"max": "memory.max", "swap": "memory.swap.max", "group": "memory.oom.group"}


class _Peak:
    """The most memory since it was made; Linux 6.12 can tell that, older ones only the most since the worker began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._before = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            # Resets what this descriptor reads.
            os.write(self._fd, b"0")
        except OSError:
            self._close()
            self._before = _number(path)

    def take(self) -> int:
        """Bytes, 0 when it is not known; once."""
        peak = 0
        # The cgroup may be gone.
        with suppress(OSError):
            peak = _number(self._path) if self._fd is None else int(os.pread(self._fd, 64, 0) or b"0")
        self._close()
        return peak if peak > self._before else 0

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_count(path: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 when it is not there."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, number = line.partition(" ")
            if key == name:
                return int(number)
    return 0


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0
