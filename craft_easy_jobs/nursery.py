"""Where workers come from: a process that has the library imported, and forks when it is asked.

A worker that is forked starts in a few milliseconds and shares with the others what was imported before. Started by the
supervisor as `python -m craft_easy_jobs.nursery FD PARENT`, and ends with it. It has one thread and no loop, so that it
can be forked safely, and imports none of a user's modules, so that every worker imports them anew. Linux only.

What it forks becomes a child of the supervisor, which adopts orphans: its own parent ends at once. So the supervisor
sees to its end, and loses nothing when the nursery dies.
"""

import ctypes
import errno
import fcntl
import gc
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module, invalidate_caches

from craft_easy_jobs.orphans import die_with

_IMPORTED = ("craft_easy_jobs.worker", "uvloop")
_ORDER_BYTES = 256 * 1024
_MOST_FDS = 16
_PR_SET_NAME = 15


def main() -> None:
    """Fork for each order, a JSON packet [module, argument, numbers] with as many files.

    The answer is the pid of a process in a session of its own that does what `python -m module argument` would, with
    the files under these numbers; or a negative errno.
    """
    # A collection would write to what is to be shared, and the imports would cause some.
    gc.disable()
    try:
        fd, parent = map(int, sys.argv[1:])
    except ValueError:
        sys.exit("craft_easy_jobs.nursery is started by craft-easy-jobd only")
    die_with(parent)
    _call_it("jobd-nursery")
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    for module in _IMPORTED:
        with suppress(ImportError):
            import_module(module)
    gc.freeze()
    try:
        order = _serve(sock)
    except ConnectionError:
        # The supervisor is gone and did not read all answers; what was forked for it ends with it.
        order = None
    if order is not None:
        die_with(parent)
        sock.close()
        _carry_out(*order)


def _serve(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """Fork for each order that comes. Returns in each process that is forked, with its packet and files; in this one,
    None when the supervisor is gone.
    """
    while True:
        packet, fds, _, _ = socket.recv_fds(sock, _ORDER_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return None
        try:
            pid = _fork()
        except OSError as error:
            pid = -(error.errno or errno.EIO)
        if pid == 0:
            return packet, fds
        sock.send(str(pid).encode())
        for each in fds:
            os.close(each)


def _carry_out(packet: bytes, fds: Sequence[int]) -> None:
    gc.enable()
    # What folders hold may have changed since the nursery looked.
    invalidate_caches()
    module, argument, numbers = json.loads(packet)
    _call_it(f"jobd-{module.rpartition('.')[2]}")
    _renumber(fds, numbers)
    sys.argv[1:] = [argument]
    import_module(module).main()


def _fork() -> int:
    """Fork a process in a session of its own, whose parent is not this process but the one that adopts orphans.

    Returns its pid; 0 in that process.
    """
    reading, writing = os.pipe()
    try:
        middle = os.fork()
        if middle == 0:
            return _become_orphan(writing)
        os.close(writing)
        writing = -1
        ended = os.waitid(os.P_PID, middle, os.WEXITED)
        pid = os.read(reading, 32)
        if not pid:
            raise OSError(ended.si_status if ended else errno.ECHILD, "no process could be forked")
        return int(pid)
    finally:
        os.close(reading)
        if writing != -1:
            os.close(writing)


def _become_orphan(telling: int) -> int:
    middle = os.getpid()
    try:
        if os.fork():
            os._exit(0)
    except OSError as error:
        os._exit(error.errno or errno.EIO)
    os.setsid()
    while os.getppid() == middle:
        os.sched_yield()
    os.write(telling, str(os.getpid()).encode())
    return 0


def _call_it(name: str) -> None:
    """For ps and top, whose command lines show the nursery's for all."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _renumber(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """Give the files these numbers, which may be those of others of them."""
    above = max(numbers, default=0) + 1
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for fd in fds:
        os.close(fd)
    for copy, number in zip(copies, numbers, strict=True):
        os.dup2(copy, number, inheritable=False)
        os.close(copy)


if __name__ == "__main__":
    main()
