"""Processes that the nursery forks for the supervisor, as children that came to it."""

import asyncio
import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress

from craft_easy_jobd.nursery import Nursery

logger = logging.getLogger("craft_easy_jobd.workers")

# It answers in a few milliseconds, or 0.1 s when it has just been started.
_ANSWER_SECONDS = 30.0
_ANSWER_BYTES = 64


class Child:
    """A process that came to this one, which reaps it.

    Attributes:
        returncode: as of subprocess: negative after a signal, None while it runs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        facts = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
        if facts is None:
            raise ChildProcessError(f"process {self.pid} has ended and cannot be reaped")
        self.returncode = facts.si_status if facts.si_code == os.CLD_EXITED else -facts.si_status
        self._ended.set_result(self.returncode)


async def fork(nursery: Nursery, module: str, argument: str, fds: Sequence[int]) -> Child:
    """Start what `python -m module argument` would be, with these files under their numbers; one at a time.

    This process must adopt orphans. A nursery that is dead is started again.

    Raises:
        OSError: no process can be started now.
    """
    order = json.dumps([module, argument, list(fds)]).encode()
    answer = await _ask(nursery, order, fds) or await _ask(nursery, order, fds)
    if not answer:
        raise OSError(errno.ECHILD, "the process that workers are forked from dies")
    pid = int(answer)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    try:
        return Child(pid)
    except OSError:
        # Nobody could see to its end; a sweep reaps it.
        os.kill(pid, signal.SIGKILL)
        raise


async def _ask(nursery: Nursery, order: bytes, fds: Sequence[int]) -> bytes:
    """The answer to an order; when there is none, the nursery is closed and this is empty."""
    sock = nursery.sock or nursery.start()
    answer = b""
    try:
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                socket.send_fds(sock, [order], fds)
                answer = await asyncio.get_running_loop().sock_recv(sock, _ANSWER_BYTES)
    finally:
        if not answer:
            # A late answer would be taken for that to the next order.
            logger.warning("the process that workers are forked from does not answer; it is ended")
            nursery.close()
    return answer
