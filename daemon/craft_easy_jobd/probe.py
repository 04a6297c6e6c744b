"""What the supervisor can learn of a worker that says nothing: its mark, its state, its stack. Never blocks."""

import fcntl
import os
import re
from contextlib import suppress
from typing import NamedTuple

from craft_easy_jobd.stacks import Stack, read_stack
from craft_easy_jobs.board import MARK_BYTES, STACK_SIGNAL, Mark, read_mark

# More than the 100 frames that are written; a job that writes into the file is not read for ever.
_STACK_BYTES = 128 * 1024
_SIGNAL = 1 << (STACK_SIGNAL - 1)
_FIELD = re.compile(rb"^(\w+):\s+(\w+)", re.MULTILINE)


class Evidence(NamedTuple):
    """What is to be seen from outside.

    `stopped`: by SIGSTOP or a debugger. `answers`: it would write its stack now if it were asked. `asked`: it was,
    and had no time for it yet.
    """

    stopped: bool
    answers: bool
    asked: bool
    mark: Mark | None


class Blockage(NamedTuple):
    """Why a worker's loop does not turn.

    `since`: monotonic seconds; the loop stands still since then at the latest. `mark`: whose step keeps it; None when
    it is no attempt's, or the process is `stopped`. `place` in the code, when it is known.
    """

    since: float
    mark: Mark | None
    place: str | None
    stopped: bool = False

    def lasted(self, now: float) -> str:
        return f"{now - self.since:.1f} s"


class Probe:
    """The memory that one worker shares with the supervisor: its mark, and the file for its stack."""

    def __init__(self) -> None:
        self.board = os.memfd_create("board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            self.stack = os.memfd_create("stack", os.MFD_CLOEXEC)
        except OSError:
            os.close(self.board)
            raise
        os.ftruncate(self.board, MARK_BYTES)
        # A file that became shorter than its mapping would kill the worker.
        fcntl.fcntl(self.board, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def close(self) -> None:
        """Give the memory back; once."""
        os.close(self.board)
        os.close(self.stack)

    def look(self, pid: int) -> Evidence:
        """See how the worker is."""
        mark = read_mark(os.pread(self.board, MARK_BYTES, 0))
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                status = file.read()
        except OSError:
            # It is gone, or this process has too many files open; judge when more is known.
            return Evidence(stopped=False, answers=False, asked=True, mark=mark)
        evidence = read_status(status, mark)
        return evidence._replace(answers=evidence.answers and self._is_open_in(pid))

    def ask(self, pid: int) -> None:
        """Have the worker write its stack; only when it `answers`, else the signal might end it."""
        os.ftruncate(self.stack, 0)
        # The worker writes at the offset that both share.
        os.lseek(self.stack, 0, os.SEEK_SET)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, STACK_SIGNAL)

    def answer(self) -> Stack | None:
        """The stack, once it is written."""
        return read_stack(os.pread(self.stack, _STACK_BYTES, 0).decode(errors="replace"))

    def _is_open_in(self, pid: int) -> bool:
        """A job may have closed the file, and by now its number may be that of a file of its own."""
        try:
            return os.path.samestat(os.stat(f"/proc/{pid}/fd/{self.stack}"), os.fstat(self.stack))
        except OSError:
            return False


def read_status(status: bytes, mark: Mark | None) -> Evidence:
    """The evidence in the text of /proc/PID/status."""
    fields = dict(_FIELD.findall(status))
    blocked, caught, *pending = (int(fields[name], 16) for name in (b"SigBlk", b"SigCgt", b"SigPnd", b"ShdPnd"))
    state = fields[b"State"]
    return Evidence(
        stopped=state in b"Tt",
        # In state D no signal is taken either.
        answers=bool(caught & ~blocked & _SIGNAL) and state not in b"DTt",
        asked=any(each & _SIGNAL for each in pending),
        mark=mark,
    )
