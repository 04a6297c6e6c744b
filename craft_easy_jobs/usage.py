"""What an attempt uses that has the process to itself: CPU time and memory, with those of the processes below it."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from craft_easy_jobs.belongings import children_of

_TICKS = os.sysconf("SC_CLK_TCK")
# Fields 14 to 17 of /proc/PID/stat, counted from the state behind the name: utime, stime, cutime, cstime.
_TIMES = slice(11, 15)


class Used(TypedDict):
    """Seconds of CPU time; peak of the memory in bytes, at least: see Usage."""

    cpu_seconds: float
    peak_rss_bytes: int | None


class Usage:
    """CPU time and memory since the object was made, of this process and of all below it.

    The peak is that of this process or of the largest one below it that ended, whichever is more; what several used
    side by side is seen from outside only.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._cpu_seconds = _cpu_seconds()
        self._largest_child = _largest_child()

    def so_far(self) -> Used:
        """What was used until now."""
        own, child = _peak_rss_bytes(), _largest_child()
        # The kernel keeps one peak for all that ever ended below: only a new one is known to be of this time.
        peak = max(own or 0, child if child > self._largest_child else 0)
        return Used(cpu_seconds=max(0.0, _cpu_seconds() - self._cpu_seconds), peak_rss_bytes=peak or None)


def _cpu_seconds() -> float:
    """Of this process, of what ended below it and was waited for, and of what is there now."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    living = sum(map(_process_seconds, _below(os.getpid())))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + living


def _below(pid: int) -> Iterator[int]:
    for child in children_of(pid):
        yield child
        yield from _below(child)


def _process_seconds(pid: int) -> float:
    with suppress(OSError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
        return sum(map(int, file.read().rpartition(b") ")[2].split()[_TIMES])) / _TICKS
    return 0.0


def _largest_child() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _peak_rss_bytes() -> int | None:
    """Peak since the last reset; `ru_maxrss` would hold what the supervisor had before exec."""
    with suppress(OSError), open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
