"""Where the processes go that a worker's jobs start and leave alone: nowhere but below the worker. Linux only."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Collection

from craft_easy_jobs.belongings import orphans

EX_UNAVAILABLE = 69
EX_OSERR = 71
_REAP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def enter_cgroup(path: str) -> None:
    """Move this process, and so all that it will start, into the cgroup2 folder; ends it when that is not possible."""
    try:
        with open(os.path.join(path, "cgroup.procs"), "w") as procs:
            procs.write("0")
    except OSError as error:
        os.write(2, f"craft-easy-jobs worker: cannot enter the cgroup {path}: {error.strerror}\n".encode())
        os._exit(EX_OSERR)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however busy it is; end it when that has happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EX_UNAVAILABLE)


def adopt_orphans() -> None:
    """Have orphans below this process become its children, where whoever kills it finds them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def keep_reaping(loop: asyncio.AbstractEventLoop, ended: Collection[int] = ()) -> None:
    """Let the kernel forget orphans that ended, now and every few seconds.

    Args:
        ended: those that had ended the last time. Only they are reaped: what ended since may be a child that a
            library started, and is about to wait for.
    """
    zombies = [pid for pid in orphans() if _has_ended(pid)]
    for pid in zombies:
        if pid in ended:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    loop.call_later(_REAP_SECONDS, keep_reaping, loop, zombies)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
