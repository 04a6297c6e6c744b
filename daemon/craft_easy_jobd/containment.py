"""What a kill must take: everything that a worker's jobs started, wherever in the process tree it went.

A worker is swept in rounds: each kills what it finds, and only a round that finds nothing ends it. Processes by tree
here, by cgroup in `cgroups.py`; and, before anything runs, what an earlier life of the daemon left.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from craft_easy_jobd.accounting import VMSTAT, Account, Accounting, TreeAccount
from craft_easy_jobd.events import Event
from craft_easy_jobd.footprint import children, descendants, read_bytes
from craft_easy_jobd.instance import MARK
from craft_easy_jobd.status import ContainmentKind

logger = logging.getLogger("craft_easy_jobd.workers")

_PR_SET_CHILD_SUBREAPER = 36
_LEFTOVER_SECONDS = 5.0
_ROUND_SECONDS = 0.005


class Containment(Protocol):
    """Keeps the processes of one worker apart from those of the others."""

    kind: ContainmentKind
    accounting: Accounting
    environment: dict[str, str]

    def cgroup(self, name: str) -> str | None:
        """Folder of the cgroup that the next worker is to enter; called once before its start."""

    def account(self, name: str, pid: int) -> Account:
        """Of the worker that was started last."""

    def sweep(self, name: str, pid: int | None, spared: Collection[int]) -> list[int] | None:
        """Kill what a worker's jobs started, one round of it; returns whom it found, None when nothing is left.

        Called in a thread, and not while a worker is being started.

        Args:
            name: of the worker that is being killed or has ended.
            pid: its process, None when that has ended.
            spared: the processes of all workers, this one too, and what else is not to be touched.
        """

    def sweep_leftovers(self, spared: Collection[int] = ()) -> list[int]:
        """Kill what an earlier life of the daemon left, one round of it; returns whom it found."""


class ProcessTrees:
    """By descent. Orphans stay below their worker, which is a subreaper; those of a dead worker come to the daemon.

    Args:
        instance: the mark's value in everything that workers start.
        note: why there are no cgroups.
        kills: see TreeAccount.
    """

    kind: ContainmentKind = "process tree"

    def __init__(self, instance: str, note: str = "", kills: Path = VMSTAT) -> None:
        self.accounting = Accounting("process tree", note)
        self._kills = kills
        self.environment = {MARK: instance}
        # Whoever started the daemon by exec may have left it children.
        self._strangers = frozenset(children(os.getpid()))

    def cgroup(self, name: str) -> str | None:
        return None

    def account(self, name: str, pid: int) -> Account:
        return TreeAccount(pid, self._kills)

    def sweep(self, name: str, pid: int | None, spared: Collection[int]) -> list[int] | None:
        adopted = [each for each in children(os.getpid()) if each not in spared and self._is_ours(each)]
        found = descendants([*adopted, *(children(pid) if pid else ())])
        kill(found)
        for each in adopted:
            reap(each)
        return found or None

    def sweep_leftovers(self, spared: Collection[int] = ()) -> list[int]:
        return sweep_carriers(self.environment, spared)

    def _is_ours(self, pid: int) -> bool:
        # To process 1 come the orphans of the whole container.
        return pid not in self._strangers and (
            os.getpid() != 1 or _state(pid) == "Z" or _carries(pid, self.environment)
        )


def adopt_orphans(*, adopt: bool = True) -> None:
    """Have orphans below this process become its children, instead of those of process 1."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def kill_leftovers(containment: Containment, spared: Collection[int] = ()) -> int:
    """Kill what an earlier life of the daemon left and wait for its end; returns how many processes that were.

    Spared is what belongs to this life.

    Gives up after _LEFTOVER_SECONDS on what SIGKILL does not end. Blocks: for a thread.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while (found := containment.sweep_leftovers(spared)) and time.monotonic() < deadline:
        killed.update(found)
        time.sleep(_ROUND_SECONDS)
    if killed:
        facts = {"event": Event.LEFTOVERS_KILLED, "processes": len(killed)}
        logger.warning("processes that an earlier life left were killed", extra=facts)
    return len(killed)


def sweep_carriers(environment: Mapping[str, str], spared: Collection[int] = ()) -> list[int]:
    """Kill every process that has this in its environment, with all below it; returns whom it found."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = descendants([pid for pid in pids if _carries(pid, environment)])
    # A job may have started this daemon.
    others = [pid for pid in found if pid != os.getpid() and pid not in spared]
    kill(others)
    return others


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; who is gone or another user's is passed over."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap(pid: int) -> None:
    """Only this one: to wait for any child would take the workers from the event loop."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _carries(pid: int, environment: Mapping[str, str]) -> bool:
    entries = {f"{name}={value}".encode() for name, value in environment.items()}
    try:
        # The environment of a process that hangs in the kernel may hang its reader, and it cannot be killed anyway.
        return _state(pid) != "D" and entries <= set(read_bytes(f"/proc/{pid}/environ").split(b"\0"))
    except OSError:
        return False


def _state(pid: int) -> str:
    """As of proc(5); Z for a process that is gone."""
    try:
        # The name before it may hold anything, spaces and parentheses too.
        return chr(read_bytes(f"/proc/{pid}/stat").rpartition(b") ")[2][0])
    except OSError:
        return "Z"
