"""Where the processes go that a worker's jobs start and leave alone: nowhere but below the worker. Linux only."""

import asyncio
import ctypes
import os
from contextlib import suppress

from craft_easy_jobs.belongings import children_of

EX_OSERR = 71
_REAP_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36


def enter_cgroup(path: str) -> None:
    """Move this process, and so all that it will start, into the cgroup2 folder; ends it when that is not possible."""
    try:
        with open(os.path.join(path, "cgroup.procs"), "w") as procs:
            procs.write("0")
    except OSError as error:
        os.write(2, f"craft-easy-jobs worker: cannot enter the cgroup {path}: {error.strerror}\n".encode())
        os._exit(EX_OSERR)


def adopt_orphans() -> None:
    """Have orphans below this process become its children, where whoever kills it finds them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def keep_reaping(loop: asyncio.AbstractEventLoop) -> None:
    """Let the kernel forget orphans that ended, now and every few seconds."""
    reap_orphans()
    loop.call_later(_REAP_SECONDS, keep_reaping, loop)


def reap_orphans() -> None:
    """Reap the adopted children that ended, but none whose parent waits for it.

    A child of our own is in our session or leads one; any other was certainly born elsewhere. What stayed in the
    session cannot be told from a child of our own, and remains a zombie until this process ends.
    """
    own = os.getsid(0)
    for pid in children_of(os.getpid()):
        with suppress(OSError):
            if os.getsid(pid) not in (own, pid):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
