"""The process that workers are forked from, see `craft_easy_jobs.nursery`. How it is asked: see `forking`.

Imports little: it is started before all that the supervisor imports, and both import side by side.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

_END_SECONDS = 3.0


class Nursery:
    """Starts the process and ends it. In the main thread: the kernel kills it when the thread that started it ends.

    Attributes:
        sock: to ask it, None before the start.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.sock: socket.socket | None = None
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> frozenset[int]:
        """Its process, dead or alive, if it was started."""
        return frozenset([self._process.pid] if self._process else [])

    def start(self) -> socket.socket:
        """Have it import what workers need, in place of an earlier one; returns the socket.

        Raises:
            OSError: no process can be started now.
        """
        self.close()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "craft_easy_jobs.nursery", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return self.sock

    def close(self) -> None:
        """End it; what it started goes on. Twice is harmless."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            self._process = None
